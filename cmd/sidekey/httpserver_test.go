package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAnswerMayTakeLongerThanTheBody: a handler that has read the body, or has none to read, may wait longer than ReadTimeout, as calls
// do that wait for agents; a client that sends too slowly is cut off.
func TestAnswerMayTakeLongerThanTheBody(t *testing.T) {
	const within = 100 * time.Millisecond
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, "slow", http.StatusRequestTimeout)
			return
		}
		select {
		case <-r.Context().Done():
			http.Error(w, "cut off", http.StatusInternalServerError)
		case <-time.After(4 * within):
			fmt.Fprint(w, "done")
		}
	}))
	srv.Config.ReadTimeout = within
	srv.Start()
	defer srv.Close()
	for _, body := range []string{"", `{"wait":"fleet"}`} {
		resp, err := http.Post(srv.URL, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != "done" {
			t.Errorf("with body %q: got %d %s, want done", body, resp.StatusCode, got)
		}
	}
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(conn); err != nil || !strings.Contains(string(got), "408") {
		t.Errorf("half a body: got %q, %v, want 408 and the end", got, err)
	}
}
