package issuer

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/sidekey/sidekey/bus/trace"
)

// Origin is where a request comes from, as far as that is known. The zero value is nowhere: the issuer itself.
type Origin struct {
	Address   string       // of the client; without a port
	UserAgent string       // as the client names itself, 256 bytes at most: to be shown, never to be believed
	Host      string       // that the client asked for, with a port where it named one
	Secure    bool         // it came by TLS, to here or to a trusted proxy
	Actor     string       // who acts, of an admin's call: "admin token", "unix socket"; else ""
	Trace     trace.Parent // as the client says: to be logged, never to be believed
}

type originKey struct{}

// WithOrigin gives a context that says where what is done in it was asked for.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(trace.With(ctx, o.Trace), originKey{}, o)
}

// originOf is where what is done in ctx was asked for.
func originOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}

// withActor adds who acts.
func withActor(ctx context.Context, actor string) context.Context {
	o := originOf(ctx)
	o.Actor = actor
	return WithOrigin(ctx, o)
}

// maxUserAgent bounds what is kept of a User-Agent.
const maxUserAgent = 256

// requestOrigin reads a request's origin.
func (i *Issuer) requestOrigin(r *http.Request) Origin {
	agent := printableOnly(strings.ToValidUTF8(r.UserAgent(), ""))
	o := Origin{Address: clientAddress(r), UserAgent: agent[:min(len(agent), maxUserAgent)], Host: r.Host, Secure: r.TLS != nil, Trace: trace.Parse(r.Header.Values(trace.Field)...)}
	if i.trustedProxy(o.Address) {
		i.forwarded(&o, r.Header)
	}
	return o
}

// trustedProxy tells whether an address is in issuer.trusted_proxies.
func (i *Issuer) trustedProxy(address string) bool {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	return slices.ContainsFunc(i.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// forwarded takes what a trusted proxy says. Of X-Forwarded-For, read from its end, the first hop that is no trusted
// proxy is the client: what stands before it the client may have written itself. A hop that is no address ends the
// reading at the proxy behind it.
func (i *Issuer) forwarded(o *Origin, h http.Header) {
	hops := strings.Split(strings.Join(h.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops[max(0, len(hops)-maxHops):]) {
		ip, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		o.Address = ip.Unmap().WithZone("").String()
		if !i.trustedProxy(o.Address) {
			break
		}
	}
	if host := h.Values("X-Forwarded-Host"); len(host) == 1 && !strings.ContainsAny(host[0], ", /\\@") {
		o.Host = host[0]
	}
	if proto := h.Values("X-Forwarded-Proto"); len(proto) == 1 {
		o.Secure = proto[0] == "https"
	}
}

// maxHops bounds how far back X-Forwarded-For is read.
const maxHops = 16

// event writes an audit event: what was done, in words that stay and that docs/audit.md lists, with what it was done to.
// Who asked for it, and from where, is taken from ctx. A secret is never among pairs.
func (i *Issuer) event(ctx context.Context, what string, pairs ...any) {
	i.audit.Info(what, append(pairs[:len(pairs):len(pairs)], originOf(ctx).pairs()...)...)
	i.audits.note(ctx, what, Done, pairs)
}

// refusal is event for what was refused.
func (i *Issuer) refusal(ctx context.Context, what string, pairs ...any) {
	i.audit.Warn(what, append(pairs[:len(pairs):len(pairs)], originOf(ctx).pairs()...)...)
	i.audits.note(ctx, what, Refused, pairs)
}

// traced adds a request's trace to the pairs of a log line.
func traced(r *http.Request, pairs ...any) []any {
	return append(pairs, trace.Parse(r.Header.Values(trace.Field)...).Pairs()...)
}

func (o Origin) pairs() []any {
	var pairs []any
	for _, p := range [][2]string{{"address", o.Address}, {"user_agent", o.UserAgent}, {"actor", o.Actor}} {
		if p[1] != "" {
			pairs = append(pairs, p[0], p[1])
		}
	}
	return append(pairs, o.Trace.Pairs()...)
}
