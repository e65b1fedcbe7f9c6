package client_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sidekey/sidekey/agent/client"
)

// BenchmarkMiddleware is what asking costs a service, beside a handler that asks nobody: over a unix socket, over loopback,
// and as much of it at once as there are processors.
func BenchmarkMiddleware(b *testing.B) {
	empty := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	unix, tcp := newWorld(b, "unix"), newWorld(b, "tcp")
	token := "Bearer " + unix.token(alice)
	for _, bm := range []struct {
		name string
		h    http.Handler
	}{
		{"none", empty},
		{"unix", newClient(b, client.Config{Address: unix.address}).Middleware(empty)},
		{"tcp", newClient(b, client.Config{Address: tcp.address}).Middleware(empty)},
	} {
		once := func() int {
			r := httptest.NewRequest("GET", "/orders?page=2", nil)
			r.Header.Set("Authorization", token)
			w := httptest.NewRecorder()
			bm.h.ServeHTTP(w, r)
			return w.Code
		}
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if code := once(); code != 200 {
					b.Fatal(code)
				}
			}
		})
		b.Run(bm.name+"-parallel", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if code := once(); code != 200 {
						b.Error(code)
					}
				}
			})
		})
	}
}
