// Package fleettest runs a bus, issuers and agents in one process, each whole but for HTTP, with a
// proxy between every agent and the bus, so that tests can spoil what lies between them and see
// whether anybody vouches who must not.
package fleettest
