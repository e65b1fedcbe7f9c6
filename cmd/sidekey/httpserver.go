package main

import (
	"net/http"
	"time"
)

// newHTTPServer bounds what a client can take of a listener of an issuer, or of an agent's for operations.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second, // for the body too; a handler may wait for longer
		WriteTimeout:      60 * time.Second, // a call waits 50 s for the agents at most
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          nil,
	}
}
