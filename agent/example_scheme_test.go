package agent_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus/replica"
)

// partner is a scheme of one's own: a partner signs method and target with a secret that was agreed upon.
//
//	Authorization: Partner acme 1767225600 <hex of HMAC-SHA256(secret, "GET /orders 1767225600")>
type partner struct {
	Secrets map[string]string `json:"secrets"` // by partner
	now     func() time.Time
}

func init() {
	agent.RegisterScheme("partner", func(c agent.SchemeConfig) (agent.Scheme, error) {
		p := &partner{now: time.Now}
		return p, c.Decode(p)
	})
}

// Authenticate implements agent.Scheme.
func (p *partner) Authenticate(_ context.Context, r *agent.Request) (*agent.Principal, error) {
	text, mine := strings.CutPrefix(r.Header("Authorization"), "Partner ")
	if !mine {
		return nil, nil // DRF: return None
	}
	var name, mac string
	var at int64
	if _, err := fmt.Sscanf(text, "%s %d %s", &name, &at, &mac); err != nil {
		return nil, &agent.Refusal{Reason: "malformed"} // DRF: raise AuthenticationFailed
	}
	sent, _ := hex.DecodeString(mac)
	sum := hmac.New(sha256.New, []byte(p.Secrets[name]))
	fmt.Fprintf(sum, "%s %s %d", r.Method(), r.Target(), at)
	switch began := time.Unix(at, 0); {
	case p.Secrets[name] == "" || !hmac.Equal(sent, sum.Sum(nil)):
		return nil, &agent.Refusal{Reason: "bad_signature"}
	case p.now().Sub(began).Abs() > time.Minute:
		return nil, &agent.Refusal{Reason: "expired"}
	default:
		// `sidekey revoke --jti partner-acme` refuses this partner on every agent.
		return &agent.Principal{Subject: name, Scope: "orders", ID: "partner-" + name, ExpiresAt: began.Add(time.Minute)}, nil // DRF: return (user, auth)
	}
}

// Challenge implements agent.Scheme.
func (*partner) Challenge() string { return "Partner" } // DRF: authenticate_header

// A scheme of one's own stands in the chain beside those that are built in. In a binary, a file of blank imports in cmd/sidekey
// brings its package in, and the table [agent.schemes.partner] is its configuration.
func ExampleRegisterScheme() {
	rep := replica.New(replica.Config{})
	ctx, done := context.WithCancel(context.Background())
	_ = rep.Follow(ctx, emptyLog{done})
	a, err := agent.New(agent.Config{
		Authenticators: []string{"partner", "bearer"},
		Schemes:        map[string]map[string]any{"partner": {"secrets": map[string]any{"acme": "a long secret"}}},
	}, agent.Parts{Replica: rep, Leases: always{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()

	at := time.Now().Unix()
	mac := hmac.New(sha256.New, []byte("a long secret"))
	fmt.Fprintf(mac, "GET /orders %d", at)
	header := http.Header{"Authorization": {fmt.Sprintf("Partner acme %d %x", at, mac.Sum(nil))}}

	for _, target := range []string{"/orders", "/admin"} {
		d := a.Authenticate(agent.NewRequest("GET", "https", "api.example", target, header, netip.MustParseAddr("203.0.113.9")))
		fmt.Printf("%d %q %q\n", d.Status, d.Reason, d.Principal.Subject)
	}
	d := a.Authenticate(agent.NewRequest("GET", "https", "api.example", "/orders", nil, netip.Addr{}))
	fmt.Printf("%d %q\n", d.Status, d.Reason)
	// Output:
	// 200 "" "acme"
	// 401 "bad_signature" ""
	// 401 "missing"
}
