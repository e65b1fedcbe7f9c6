package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// loader sends the load of a rolling restart. It keeps no connection: a balancer looks where each request goes.
var loader = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// balanced posts to the issuers from the turn's on until one neither refuses the connection nor says 503, for up to
// half a minute. A connection that is cut after the request was sent is a failure.
func balanced(urls []string, turn int, path string, body any, elsewhere *atomic.Int64) (answer map[string]any, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	for n := 0; ; n++ {
		if n > 0 {
			elsewhere.Add(1)
		}
		var status int
		status, answer, err = postJSON(urls[(turn+n)%len(urls)]+path, text)
		if err == nil && status == http.StatusOK {
			return answer, nil
		}
		again := status == http.StatusServiceUnavailable || status == 0
		if !again || time.Since(begun) > 30*time.Second {
			return nil, fmt.Errorf("%s: status %d: %v %v", path, status, answer, err)
		}
		if n%len(urls) == len(urls)-1 {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// postJSON gives status 0 where nobody listens, and -1 where somebody did and gave no answer.
func postJSON(url string, body []byte) (status int, answer map[string]any, err error) {
	resp, err := loader.Post(url, "application/json", bytes.NewReader(body))
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return 0, nil, err
	case err != nil:
		return -1, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1, nil, err
	}
	_ = json.Unmarshal(text, &answer) // an answer that is no JSON has a status that tells
	return resp.StatusCode, answer, nil
}

// login gives alice's tokens of one issuer.
func login(url string) (access, refresh string, err error) {
	answer, err := balanced([]string{url}, 0, "/api/token/", map[string]string{"username": "alice", "password": "wonderland"}, new(atomic.Int64))
	if err != nil {
		return "", "", err
	}
	return answer["access"].(string), answer["refresh"].(string), nil
}

// oneSession logs in, refreshes at another issuer at once, and has an agent verify both access tokens.
func oneSession(urls []string, turn int, agent string, elsewhere *atomic.Int64) error {
	first, err := balanced(urls, turn, "/api/token/", map[string]string{"username": "alice", "password": "wonderland"}, elsewhere)
	if err != nil {
		return err
	}
	second, err := balanced(urls, turn+1, "/api/token/refresh/", map[string]any{"refresh": first["refresh"]}, elsewhere)
	if err != nil {
		return err
	}
	for _, answer := range []map[string]any{first, second} {
		text, _ := json.Marshal(map[string]any{"token": answer["access"]}) // a string
		status, said, err := postJSON(agent+"/v1/verify", text)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("verify: status %d: %v %v", status, said, err)
		}
	}
	return nil
}
