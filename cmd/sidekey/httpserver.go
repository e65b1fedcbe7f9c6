package main

import (
	"io"
	"net/http"
	"time"
)

// bodyWithin is how long a client has to send a request's body.
const bodyWithin = 10 * time.Second

// newHTTPServer bounds what a client can take of a listener of an issuer, or of an agent's for operations.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           boundBody(h, bodyWithin),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      60 * time.Second, // a call waits 50 s for the agents at most
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          nil,
	}
}

// boundBody gives a client so long for the body. http.Server's ReadTimeout would do so too, but goes on to run while the handler is at
// work, and then ends the request's context: a call that waits longer for the agents would be cut off.
func boundBody(h http.Handler, within time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			ctl := http.NewResponseController(w)
			_ = ctl.SetReadDeadline(time.Now().Add(within)) // a test's recorder has none
			r.Body = &boundedBody{r.Body, func() { _ = ctl.SetReadDeadline(time.Time{}) }}
		}
		h.ServeHTTP(w, r)
	})
}

// boundedBody calls read once all of it is read.
type boundedBody struct {
	io.ReadCloser
	read func()
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.read()
	}
	return n, err
}
