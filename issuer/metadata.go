package issuer

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/sidekey/sidekey/keyring"
)

// metadata is RFC 8414 §2's, and OpenID Connect Discovery's, for clients that look there. No ID token is ever issued and there
// is no authorization endpoint: response_types_supported, which both require, says "none" (OAuth 2.0 Multiple Response
// Types §4), since Authlib and others refuse an empty list.
type metadata struct {
	Issuer                string   `json:"issuer"`
	TokenEndpoint         string   `json:"token_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	JWKSURI               string   `json:"jwks_uri"`
	ResponseTypes         []string `json:"response_types_supported"`
	Grants                []string `json:"grant_types_supported"`
	TokenAuth             []string `json:"token_endpoint_auth_methods_supported"`
	TokenAuthAlgs         []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	RevocationAuth        []string `json:"revocation_endpoint_auth_methods_supported"`
	RevocationAuthAlgs    []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	IntrospectionAuth     []string `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectionAuthAlgs []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	SubjectTypes          []string `json:"subject_types_supported"`
	IDTokenAlgs           []string `json:"id_token_signing_alg_values_supported"`
}

// Metadata paths. With a path in issuer.url, RFC 8414 §3.1 puts it behind the well-known one, and OpenID Connect before it.
const (
	pathOAuthMetadata = "/.well-known/oauth-authorization-server"
	pathOIDCMetadata  = "/.well-known/openid-configuration"
)

// routeMetadata adds the same document at each place where a client looks for it.
func (i *Issuer) routeMetadata(mux *http.ServeMux) {
	paths := []string{pathOAuthMetadata, pathOIDCMetadata}
	if u, err := url.Parse(i.cfg.URL); err == nil && strings.Trim(u.Path, "/") != "" && !strings.ContainsAny(u.Path, "{}") {
		path := "/" + strings.Trim(u.EscapedPath(), "/")
		paths = append(paths, pathOAuthMetadata+path, pathOIDCMetadata+path, path+pathOIDCMetadata)
	}
	for _, path := range paths {
		mux.HandleFunc("GET "+path, i.serveMetadata)
	}
}

// serveMetadata answers to everybody: there is nothing in it but addresses.
func (i *Issuer) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	secrets := []string{authBasic, authPost, authJWT}
	algs := []string{string(keyring.RS256), string(keyring.ES256), string(keyring.EdDSA)}
	grants := []string{grantClient, grantRefresh, grantExchange}
	if i.cfg.AllowPasswordGrant {
		grants = append(grants, grantPassword)
	}
	public := append([]string{authNone}, secrets...)
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Cache-Control", "public, max-age=300")
	writeJSON(w, http.StatusOK, metadata{
		Issuer:        i.cfg.URL,
		TokenEndpoint: i.cfg.URL + "/oauth2/token", RevocationEndpoint: i.cfg.URL + "/oauth2/revoke",
		IntrospectionEndpoint: i.cfg.URL + "/oauth2/introspect", JWKSURI: i.cfg.URL + "/.well-known/jwks.json",
		ResponseTypes: []string{"none"}, Grants: grants,
		TokenAuth: public, TokenAuthAlgs: algs, RevocationAuth: public, RevocationAuthAlgs: algs,
		IntrospectionAuth: secrets, IntrospectionAuthAlgs: algs,
		SubjectTypes: []string{"public"}, IDTokenAlgs: algs,
	})
}
