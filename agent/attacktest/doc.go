// Package attacktest holds requests that mean to reach what their sender may not, and what must become of each: at the
// agent, told by a proxy or to POST /v1/check, and behind a real proxy, where the upstream must never see it.
//
// The table is one; a Face tells the agent of an attack in a profile's way, and Through sends it to a proxy as bytes.
// What the upstream saw is judged by the most lenient reading that a service could make of it, not by the agent's own.
package attacktest
