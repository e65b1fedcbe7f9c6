// Package client is for a service in Go that asks the agent beside it by itself: a middleware of net/http that lets a request
// pass only if the agent allows it, and says who it is from.
//
// It imports nothing but the standard library. It never decides by itself: what is not allowed by an answer of the agent is
// refused, also where the agent is away, slow, or says what cannot be understood (503).
package client
