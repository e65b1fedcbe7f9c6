package issuer

import (
	"context"
	"net/http"
)

// Origin is where a request comes from, as far as that is known. The zero value is nowhere: the issuer itself.
type Origin struct {
	Address   string // of the client; without a port
	UserAgent string // as the client names itself, 256 bytes at most: to be shown, never to be believed
	Actor     string // who acts, of an admin's call: "admin token", "unix socket"; else ""
}

type originKey struct{}

// WithOrigin gives a context that says where what is done in it was asked for.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
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
func requestOrigin(r *http.Request) Origin {
	agent := printableOnly(r.UserAgent())
	return Origin{Address: clientAddress(r), UserAgent: agent[:min(len(agent), maxUserAgent)]}
}

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

func (o Origin) pairs() []any {
	var pairs []any
	for _, p := range [][2]string{{"address", o.Address}, {"user_agent", o.UserAgent}, {"actor", o.Actor}} {
		if p[1] != "" {
			pairs = append(pairs, p[0], p[1])
		}
	}
	return pairs
}
