package agent

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	lru "github.com/hashicorp/golang-lru/v2"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sidekey/sidekey/bus/replica"
)

// fieldClaims is where applications look for all claims, by convention. A client's own is taken off whether or not
// agent.headers fills it.
const fieldClaims = "x-auth-claims"

// envoyFace is Envoy's ext_authz over gRPC: the decisions of the forward-auth faces, in Envoy's own words.
type envoyFace struct {
	names    []string        // where eachHeader's values go, in their order, in lower case as HTTP/2 has them
	own      map[string]bool // all of names and fieldClaims
	requests routeCounters
	// answers to API keys and opaque tokens, encoded. A credential that is made anew is another one.
	answers *lru.Cache[*replica.Credential, []byte]
}

func newEnvoyFace(a *Agent) (envoyFace, error) {
	answers, err := lru.New[*replica.Credential, []byte](a.cfg.CacheSize)
	if err != nil {
		return envoyFace{}, fmt.Errorf("making a cache of answers to Envoy: %w", err)
	}
	f := envoyFace{answers: answers, own: map[string]bool{fieldClaims: true}, requests: a.metrics.route("grpc")}
	a.eachHeader(&Principal{mapped: a.unmapped}, func(name []byte, _ string) {
		lower := strings.ToLower(string(name))
		f.names, f.own[lower] = append(f.names, lower), true
	})
	return f, nil
}

// remembered gives the encoded answer for a principal, nil: there is none yet.
func (f *envoyFace) remembered(p *Principal) []byte {
	if p.kept != nil {
		if b := p.kept.envoy.Load(); b != nil {
			return *b
		}
		return nil
	}
	b, _ := f.answers.Get(p.held)
	return b
}

func (f *envoyFace) remember(p *Principal, encoded []byte) {
	if p.kept != nil {
		p.kept.envoy.Store(&encoded)
		return
	}
	f.answers.Add(p.held, encoded)
}

// envoyServer is the gRPC service. It is a type of its own so that the Agent has no method Check.
type envoyServer struct {
	authv3.UnimplementedAuthorizationServer
	agent *Agent
}

// Check decides one request. Every decision is an answer, also that there is none to be had: an error is what Envoy lets
// through where failure_mode_allow is set.
func (s *envoyServer) Check(_ context.Context, req *authv3.CheckRequest) (answer *authv3.CheckResponse, err error) {
	a, status := s.agent, http.StatusInternalServerError
	defer func() {
		if x := recover(); x != nil { // fails closed
			a.panicked(x, nil)
			answer, err = failed(), nil
		}
		a.envoy.requests.count(status)
	}()
	r := readEnvoyCheck(req, a.envoy.own)
	defer r.release()
	a.authorize(r)
	if r.d.Active() {
		answer = a.envoyAllows(r)
		status = http.StatusOK
	} else {
		answer, status = a.envoyDenies(r)
	}
	a.told("grpc", status, r.headers)
	return answer, nil
}

// envoyFields are the fields of a request as Envoy describes it: as a map by names in lower case or, with
// encode_raw_headers, as a list that has each as often as it was sent.
type envoyFields struct {
	byName map[string]string
	list   []*corev3.HeaderValue
	// alike are fields that a service may take for one of ours: X_Auth_Subject is X-Auth-Subject to CGI and WSGI.
	alike []string
	found [1][]byte
}

func (f *envoyFields) all(name string) [][]byte {
	if f.list != nil {
		all := f.found[:0]
		for _, h := range f.list {
			if strings.EqualFold(h.GetKey(), name) {
				all = append(all, rawValue(h))
			}
		}
		return all
	}
	var space [64]byte
	lower := space[:0]
	for i := 0; i < len(name); i++ {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		lower = append(lower, c)
	}
	v, ok := f.byName[string(lower)]
	if !ok {
		return nil
	}
	f.found[0] = unsafeBytes(v)
	return f.found[:]
}

func rawValue(h *corev3.HeaderValue) []byte {
	if raw := h.GetRawValue(); len(raw) > 0 {
		return raw
	}
	return unsafeBytes(h.GetValue())
}

// read takes the fields of a request, false: they are not as Envoy describes them. own are the names that only the agent
// may fill.
func (f *envoyFields) read(req *authv3.AttributeContext_HttpRequest, own map[string]bool) bool {
	f.byName, f.list = req.GetHeaders(), req.GetHeaderMap().GetHeaders()
	if len(f.byName) > 0 && len(f.list) > 0 {
		return false // which are the request's?
	}
	for name, value := range f.byName {
		if !f.note(name, own) || pseudo(name) && !agrees(req, name, value) {
			return false
		}
	}
	for _, h := range f.list {
		name := h.GetKey()
		if !f.note(name, own) || len(h.GetRawValue()) > 0 && h.GetValue() != "" || pseudo(name) && !agrees(req, name, borrow(rawValue(h))) {
			return false
		}
	}
	return true
}

// pseudo tells whether it is the name of a pseudo-header (RFC 9113 §8.3).
func pseudo(name string) bool { return name != "" && name[0] == ':' }

// agrees tells whether a pseudo-header says of the request what the message says. A string of the message has "!" where the
// client sent no UTF-8; the list has the bytes, and so has the service.
func agrees(req *authv3.AttributeContext_HttpRequest, name, value string) bool {
	switch name {
	case ":method":
		return value == req.GetMethod()
	case ":authority":
		return value == req.GetHost()
	case ":path":
		return value == req.GetPath()
	}
	return true
}

// note looks at one field's name.
func (f *envoyFields) note(name string, own map[string]bool) bool {
	underscore := false
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			return false // it would not be found, and the service may find it
		case c == '_':
			underscore = true
		}
	}
	if underscore && own[strings.ReplaceAll(name, "_", "-")] && !own[name] {
		f.alike = append(f.alike, name)
	}
	return true
}

// extensionPrefix begins what a route's context_extensions may ask of the agent, which refuses what it does not know. They
// are the proxy's own words: no client can write them.
const (
	extensionPrefix = "sidekey."
	extensionRules  = "sidekey.rules" // the set of rules that decides, of those that the log hands out
)

// readEnvoyCheck makes a Request of a check request; give it back with release. Bodies are never looked at.
func readEnvoyCheck(req *authv3.CheckRequest, own map[string]bool) *Request {
	r := requests.Get().(*Request)
	at := req.GetAttributes()
	is := at.GetRequest().GetHttp()
	r.method, r.proto, r.host, r.target = is.GetMethod(), is.GetScheme(), is.GetHost(), is.GetPath()
	// Envoy has both in the path, and says that it leaves these empty.
	r.faulty = !r.envoy.read(is, own) || is.GetQuery() != "" || is.GetFragment() != ""
	for name, value := range at.GetContextExtensions() {
		if name == extensionRules {
			r.named, r.ruleSet = true, value
		} else if strings.HasPrefix(name, extensionPrefix) {
			r.faulty = true
		}
	}
	r.client = clientAddr(at.GetSource().GetAddress().GetSocketAddress().GetAddress())
	r.headers = &r.envoy
	r.readCredentials()
	r.judgeShape()
	return r
}

// envoyAllows is the answer that lets a request pass. It is encoded once for a token, API key or opaque token: nothing
// in it is the request's own, but where that makes it another one.
func (a *Agent) envoyAllows(r *Request) *authv3.CheckResponse {
	p := &r.d.Principal
	strip := a.cfg.StripCredentials && p.Method != MethodAnonymous
	plain := (p.kept != nil || p.held != nil) && !r.d.Serving && len(r.envoy.alike) == 0 && !(strip && r.cookie != "")
	if plain {
		if encoded := a.envoy.remembered(p); encoded != nil {
			answer := new(authv3.CheckResponse)
			answer.ProtoReflect().SetUnknown(encoded) // goes out as it is
			return answer
		}
	}
	ok := &authv3.OkHttpResponse{Headers: make([]*corev3.HeaderValueOption, 0, len(a.envoy.names)+1)}
	next := 0
	a.eachHeader(p, func(_ []byte, value string) {
		name := a.envoy.names[next]
		next++
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
			return
		}
		ok.Headers = append(ok.Headers, overwrite(name, value))
	})
	if !slices.Contains(a.envoy.names, fieldClaims) {
		ok.HeadersToRemove = append(ok.HeadersToRemove, fieldClaims)
	}
	ok.HeadersToRemove = append(ok.HeadersToRemove, r.envoy.alike...)
	if strip {
		stripCredentials(ok, r.cookie)
	}
	if r.d.Serving {
		ok.ResponseHeadersToAdd = append(ok.ResponseHeadersToAdd, overwrite("sidekey-stale", "true"))
	}
	answer := &authv3.CheckResponse{
		Status:          &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: p.metadata(),
	}
	if plain {
		if encoded, err := proto.Marshal(answer); err == nil {
			a.envoy.remember(p, encoded)
		}
	}
	return answer
}

// metadata is what Envoy's other filters and its log are told: {"subject": …, "method": …, "claims": {…}}.
func (p *Principal) metadata() *structpb.Struct {
	m := map[string]*structpb.Value{"subject": structpb.NewStringValue(p.Subject), "method": structpb.NewStringValue(p.Method)}
	claims := new(structpb.Struct)
	if p.Method != MethodAnonymous && claims.UnmarshalJSON(p.claimsJSON()) == nil {
		m["claims"] = structpb.NewStructValue(claims)
	}
	return &structpb.Struct{Fields: m}
}

// stripCredentials takes off what says who the client is, and nothing else of its cookies.
func stripCredentials(ok *authv3.OkHttpResponse, cookies string) {
	ok.HeadersToRemove = append(ok.HeadersToRemove, "authorization", "x-api-key")
	if cookies == "" {
		return
	}
	rest := withoutCookies(cookies, sessionCookie, refreshCookie)
	switch rest {
	case cookies:
	case "":
		ok.HeadersToRemove = append(ok.HeadersToRemove, "cookie")
	default:
		ok.Headers = append(ok.Headers, overwrite("cookie", rest))
	}
}

// refreshCookie is the issuer's, for its own paths; a browser may send it to a service on the same ones.
const refreshCookie = "__Secure-sidekey_refresh"

// withoutCookies is a Cookie field without the cookies of these names; unchanged where there are none.
func withoutCookies(field string, names ...string) string {
	var left []string
	cut := false
	for pair := range strings.SplitSeq(field, ";") {
		name, _, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
		if slices.Contains(names, strings.Trim(name, " \t")) {
			cut = true
			continue
		}
		left = append(left, strings.Trim(pair, " \t"))
	}
	if !cut {
		return field
	}
	return strings.Join(left, "; ")
}

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// envoyDenies is the answer that refuses a request, with the status that the client is told.
func (a *Agent) envoyDenies(r *Request) (*authv3.CheckResponse, int) {
	d := &r.d
	status, challenges := a.outcomeOf(r)
	headers := make([]*corev3.HeaderValueOption, 0, len(challenges)+5)
	for _, c := range challenges {
		headers = append(headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: "www-authenticate", Value: strings.ToValidUTF8(c, "?")}, // a scheme's own may be anything
			AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
		})
	}
	headers = append(headers, overwrite("sidekey-reason", strings.ToValidUTF8(string(d.Reason), "?")))
	if after := d.retryAfter(status); after != "" {
		headers = append(headers, overwrite("retry-after", after))
	}
	if d.Serving {
		headers = append(headers, overwrite("sidekey-stale", "true"))
	}
	return denied(status, string(d.Reason), d.Description, headers), status
}

// denied is a denial with a problem as its body.
func denied(status int, reason, detail string, headers []*corev3.HeaderValueOption) *authv3.CheckResponse {
	headers = append(headers, overwrite("content-type", string(typeProblem)), overwrite("cache-control", "no-store"))
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codeOf(status))},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: headers,
			Body:    strings.ToValidUTF8(string(appendProblem(nil, status, reason, detail)), "?"), // a scheme's reason may be anything
		}},
	}
}

// failed is the answer where the agent failed inside.
func failed() *authv3.CheckResponse {
	return denied(http.StatusInternalServerError, "", "the agent failed; its log says where", nil)
}

// codeOf is gRPC's word for a status; never OK.
func codeOf(status int) codes.Code {
	switch status {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	}
	return codes.Internal
}
