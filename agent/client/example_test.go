package client_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/sidekey/sidekey/agent/client"
)

// A service that lets its agent decide. Here a stand-in plays the agent, which in production listens on a unix socket or on
// loopback: an empty Config reaches it there.
func Example() {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"decision":"allow","status":200,"headers":{"X-Auth-Subject":"41","X-Auth-Scope":"read","X-Auth-Method":"bearer"}}`)
	}))
	defer agent.Close()

	auth, err := client.New(client.Config{Address: agent.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer auth.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		who, _ := client.FromContext(r.Context())
		fmt.Fprintln(w, "orders of", who.Subject)
	})
	mux.Handle("DELETE /orders", client.RequireScope("write")(http.NotFoundHandler()))
	service := auth.Middleware(mux)

	for _, method := range []string{"GET", "DELETE"} {
		w := httptest.NewRecorder()
		service.ServeHTTP(w, httptest.NewRequest(method, "/orders", nil))
		fmt.Println(w.Code)
		if w.Code == http.StatusOK {
			fmt.Print(w.Body)
			continue
		}
		fmt.Println(w.Header().Get("WWW-Authenticate"))
	}
	// Output:
	// 200
	// orders of 41
	// 403
	// Bearer error="insufficient_scope", scope="write"
}
