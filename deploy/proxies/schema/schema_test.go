package schema

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3" // registered for protojson, as those below
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	mesh "istio.io/api/mesh/v1alpha1"
	istionet "istio.io/api/networking/v1alpha3"
	istiosec "istio.io/api/security/v1beta1"
	networking "k8s.io/api/networking/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// read gives the documents of a file of deploy/proxies.
func read(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "nothing has tried it") || !strings.Contains(string(b), "fails closed") {
		t.Errorf("%s does not say that nothing has tried it, or what happens while the agent is away", file)
	}
	return strings.Split(string(b), "\n---\n")
}

// decode decodes YAML into a message; an unknown field or a duplicate key is an error.
func decode(t *testing.T, text string, m proto.Message) {
	t.Helper()
	b, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
}

// validate runs the validation that Envoy's types have, also of what is packed in an Any.
func validate(t *testing.T, m proto.Message) (checked int) {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		checked++
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", m.ProtoReflect().Descriptor().FullName(), err)
		}
	}
	if a, ok := m.(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		return checked + validate(t, inner)
	}
	visit := func(v protoreflect.Message) { checked += validate(t, v.Interface()) }
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { visit(v.Message()); return true })
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				visit(v.List().Get(i).Message())
			}
		default:
			visit(v.Message())
		}
		return true
	})
	return checked
}

// TestEnvoy holds envoy.yaml against Envoy's own types and their rules.
func TestEnvoy(t *testing.T) {
	holdEnvoy(t, "envoy.yaml", "path_prefix: /v1/auth/envoy\n")
}

// TestEnvoyGRPC holds envoy-grpc.yaml likewise: it asks over gRPC, and tells of each field as it came.
func TestEnvoyGRPC(t *testing.T) {
	holdEnvoy(t, "envoy-grpc.yaml", "encode_raw_headers: true\n", "grpc_service:", "http2_protocol_options:", "port_value: 7462")
	if text := read(t, "envoy-grpc.yaml")[0]; strings.Contains(text, "http_service:") || strings.Contains(text, "allowed_headers:") {
		t.Error("envoy-grpc.yaml asks over HTTP too, or does not tell of every field")
	}
}

func holdEnvoy(t *testing.T, file string, more ...string) {
	t.Helper()
	b := new(bootstrap.Bootstrap)
	text := read(t, file)[0]
	decode(t, text, b)
	if n := validate(t, b); n < 50 {
		t.Errorf("%d messages were validated, want all of them", n)
	}
	for _, want := range append(more, "failure_mode_allow: false", "status_on_error: {code: ServiceUnavailable}", "headers_with_underscores_action: DROP_HEADER") {
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %q", file, want)
		}
	}
	order := []string{"sidekey.before", "envoy.filters.http.ext_authz", "sidekey.after", "envoy.filters.http.router"}
	at := -1
	for _, name := range order {
		next := strings.Index(text, "- name: "+name)
		if next <= at {
			t.Errorf("%s: the filter %s is not where it must be", file, name)
		}
		at = next
	}
}

// TestClientsAddressIsTheProxysWord: of a client with a private address Envoy leaves X-Envoy-External-Address as it came, so
// whoever hands it to the agent sets it before from the connection; an API key's networks would be the client's to choose.
func TestClientsAddressIsTheProxysWord(t *testing.T) {
	const field = "x-envoy-external-address"
	before, check, _ := strings.Cut(read(t, "envoy.yaml")[0], "- name: envoy.filters.http.ext_authz")
	if !strings.Contains(check, "- exact: "+field+"\n") {
		t.Errorf("envoy.yaml does not tell of %s", field)
	}
	_, before, _ = strings.Cut(before, "- name: sidekey.before")
	set := `header: {key: ` + field + `, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}` + "\n" + strings.Repeat(" ", 30) + "append_action: OVERWRITE_IF_EXISTS_OR_ADD\n"
	if !strings.Contains(before, set) {
		t.Errorf("envoy.yaml hands on %s without setting it", field)
	}
	config := new(mesh.MeshConfig)
	decode(t, read(t, "istio.yaml")[0], config)
	route := new(gateway.HTTPRoute)
	if err := yaml.UnmarshalStrict([]byte(read(t, "gateway-api.yaml")[0]), route); err != nil {
		t.Fatal(err)
	}
	for file, told := range map[string][]string{
		"istio.yaml":       config.GetExtensionProviders()[0].GetEnvoyExtAuthzHttp().GetIncludeRequestHeadersInCheck(),
		"gateway-api.yaml": route.Spec.Rules[0].Filters[0].ExternalAuth.HTTPAuthConfig.AllowedRequestHeaders,
	} {
		if len(told) == 0 || slices.ContainsFunc(told, func(name string) bool { return strings.EqualFold(name, field) || name == "*" }) {
			t.Errorf("%s hands on %s, which nothing there sets: %v", file, field, told)
		}
	}
}

// object is the envelope of a Kubernetes object.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       json.RawMessage   `json:"spec"`
}

// TestIstio holds each document of istio.yaml against Istio's own type.
func TestIstio(t *testing.T) {
	docs := read(t, "istio.yaml")
	config := new(mesh.MeshConfig)
	decode(t, docs[0], config)
	ext := config.GetExtensionProviders()[0].GetEnvoyExtAuthzHttp()
	if ext.GetFailOpen() || ext.GetStatusOnError() != "503" || ext.GetPathPrefix() != "/v1/auth/envoy" || !slices.Contains(ext.GetHeadersToUpstreamOnAllow(), "x-auth-*") {
		t.Errorf("the provider is not as it must be: %v", ext)
	}
	specs := map[string]proto.Message{
		"security.istio.io/v1 AuthorizationPolicy": new(istiosec.AuthorizationPolicy),
		"networking.istio.io/v1 VirtualService":    new(istionet.VirtualService),
		"networking.istio.io/v1alpha3 EnvoyFilter": new(istionet.EnvoyFilter),
	}
	for _, doc := range docs[1:] {
		var o object
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		kind := o.APIVersion + " " + o.Kind
		spec, ok := specs[kind]
		if !ok {
			t.Fatalf("an object of the kind %q, or two", kind)
		}
		delete(specs, kind)
		if err := protojson.Unmarshal(o.Spec, spec); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if p, ok := spec.(*istiosec.AuthorizationPolicy); ok && (p.GetAction() != istiosec.AuthorizationPolicy_CUSTOM || p.GetProvider().GetName() != config.GetExtensionProviders()[0].GetName()) {
			t.Errorf("the policy does not ask the provider: %v", p)
		}
		if f, ok := spec.(*istionet.EnvoyFilter); ok {
			patch, err := f.GetConfigPatches()[0].GetPatch().GetValue().Fields["typed_config"].GetStructValue().MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			inner := new(anypb.Any)
			if err := protojson.Unmarshal(patch, inner); err != nil {
				t.Errorf("the filter in the EnvoyFilter: %v", err)
			}
			validate(t, inner)
		}
	}
	if len(specs) != 0 {
		t.Errorf("istio.yaml has not: %v", specs)
	}
}

// TestGatewayAPI holds gateway-api.yaml against the Gateway API's own type.
func TestGatewayAPI(t *testing.T) {
	route := new(gateway.HTTPRoute)
	if err := yaml.UnmarshalStrict([]byte(read(t, "gateway-api.yaml")[0]), route); err != nil {
		t.Fatal(err)
	}
	filters := route.Spec.Rules[0].Filters
	auth := filters[0].ExternalAuth
	if filters[0].Type != gateway.HTTPRouteFilterExternalAuth || auth == nil || auth.HTTPAuthConfig == nil || auth.HTTPAuthConfig.Path != "/v1/auth/envoy" {
		t.Errorf("the first filter does not ask the agent: %+v", filters[0])
	}
	if auth.ForwardBody != nil {
		t.Error("the body goes to the agent")
	}
}

// TestIngressNginx holds ingress-nginx.yaml against Kubernetes' type; annotations are text to it, so they are held against
// those that the controller documents.
func TestIngressNginx(t *testing.T) {
	ingress := new(networking.Ingress)
	if err := yaml.UnmarshalStrict([]byte(read(t, "ingress-nginx.yaml")[0]), ingress); err != nil {
		t.Fatal(err)
	}
	known := []string{"auth-url", "auth-response-headers", "auth-keepalive", "auth-keepalive-timeout", "auth-keepalive-requests"}
	for name := range ingress.Annotations {
		if short, ok := strings.CutPrefix(name, "nginx.ingress.kubernetes.io/"); !ok || !slices.Contains(known, short) {
			t.Errorf("the annotation %q is none of %v", name, known)
		}
	}
	if got := ingress.Annotations["nginx.ingress.kubernetes.io/auth-url"]; !strings.HasSuffix(got, ":7461/v1/auth/nginx") {
		t.Errorf("auth-url is %q", got)
	}
}

// traefik is the part of Traefik's dynamic configuration that the file uses, as its documentation has it: Traefik's own types
// come with all of Traefik.
type traefik struct {
	HTTP struct {
		Routers map[string]struct {
			EntryPoints []string       `json:"entryPoints"`
			Rule        string         `json:"rule"`
			Middlewares []string       `json:"middlewares"`
			Service     string         `json:"service"`
			TLS         map[string]any `json:"tls"`
		} `json:"routers"`
		Middlewares map[string]struct {
			Headers *struct {
				CustomRequestHeaders map[string]string `json:"customRequestHeaders"`
			} `json:"headers"`
			ForwardAuth *struct {
				Address                  string `json:"address"`
				TrustForwardHeader       bool   `json:"trustForwardHeader"`
				AuthResponseHeadersRegex string `json:"authResponseHeadersRegex"`
			} `json:"forwardAuth"`
		} `json:"middlewares"`
		Services map[string]struct {
			LoadBalancer struct {
				PassHostHeader bool `json:"passHostHeader"`
				Servers        []struct {
					URL string `json:"url"`
				} `json:"servers"`
			} `json:"loadBalancer"`
		} `json:"services"`
	} `json:"http"`
}

func TestTraefik(t *testing.T) {
	var config traefik
	if err := yaml.UnmarshalStrict([]byte(read(t, "traefik.yaml")[0]), &config); err != nil {
		t.Fatal(err)
	}
	router := config.HTTP.Routers["app"]
	if !slices.Equal(router.Middlewares, []string{"sidekey-before", "sidekey", "sidekey-after"}) {
		t.Errorf("the middlewares are not in their order: %v", router.Middlewares)
	}
	for _, name := range router.Middlewares {
		if _, ok := config.HTTP.Middlewares[name]; !ok {
			t.Errorf("there is no middleware %q", name)
		}
	}
	if _, ok := config.HTTP.Services[router.Service]; !ok {
		t.Errorf("there is no service %q", router.Service)
	}
	if auth := config.HTTP.Middlewares["sidekey"].ForwardAuth; auth == nil || auth.TrustForwardHeader || !strings.HasSuffix(auth.Address, ":7461/v1/auth/forward") {
		t.Errorf("forwardAuth is not as it must be: %+v", auth)
	}
	for name, m := range config.HTTP.Middlewares {
		if m.Headers == nil {
			continue
		}
		for field, value := range m.Headers.CustomRequestHeaders {
			if value != "" {
				t.Errorf("%s sets %s, and should remove it", name, field)
			}
		}
	}
}

// TestStrict holds that the decoding above finds a wrong field at all.
func TestStrict(t *testing.T) {
	for _, text := range []string{"static_resources: {listener: []}", "admin: {}\nadmin: {}"} {
		b, err := yaml.YAMLToJSONStrict([]byte(text))
		if err == nil {
			err = protojson.Unmarshal(b, new(bootstrap.Bootstrap))
		}
		if err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	text, err := os.ReadFile("../ingress-nginx.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(bytes.Replace(text, []byte("pathType:"), []byte("pathTyp:"), 1), new(networking.Ingress)); err == nil {
		t.Error("a wrong field of an Ingress was taken")
	}
}
