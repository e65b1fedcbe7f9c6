package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "The ring of signing keys",
		a.keysListCommand(), a.keysRotateCommand(), a.keysImportCommand(), a.keysRevokeCommand())
}

func (a *app) keysListCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "list",
		Short: "List the keys and their states",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer struct {
				Keys []struct {
					KeyID     string  `json:"kid"`
					Alg       string  `json:"alg"`
					Bits      int     `json:"bits"`
					State     string  `json:"state"`
					Audience  string  `json:"aud"`
					Created   float64 `json:"created"`
					RetiredAt float64 `json:"retired_at"`
					Seq       uint64  `json:"seq"`

					ActivatesAt float64  `json:"activates_at,omitempty"`
					Shared      bool     `json:"shared,omitempty"`
					Agents      []string `json:"agents,omitempty"`
					Accept      string   `json:"accept,omitempty"`
					Expires     float64  `json:"expires,omitempty"`
				} `json:"keys"`
			}
			return a.list(cmd, "/admin/v1/keys", &answer, func(w *tabwriter.Writer) {
				row(w, "KID", "ALG", "BITS", "STATE", "AUD", "CREATED", "RETIRED", "SEQ", "NOTE")
				for _, k := range answer.Keys {
					note := ""
					switch {
					case k.Accept != "" && k.Shared:
						note = "accepts the tokens of " + k.Accept + " until " + when(k.Expires) + "; every holder of the secret can mint, here " + names(append([]string{"the issuers"}, k.Agents...))
					case k.Accept != "":
						note = "accepts the tokens of " + k.Accept + " until " + when(k.Expires)
					case k.Shared:
						note = "imported secret: every holder can mint with it, here " + names(append([]string{"the issuers"}, k.Agents...))
					case k.ActivatesAt != 0:
						note = "signs from " + when(k.ActivatesAt) + ", once every agent holds it"
					}
					row(w, k.KeyID, k.Alg, k.Bits, k.State, k.Audience, when(k.Created), when(k.RetiredAt), k.Seq, note)
				}
			})
		},
	})
}

func (a *app) keysImportCommand() *cobra.Command {
	var alg, accept, userID, iss, aud string
	var acceptFor time.Duration
	var activate, shared bool
	var agents []string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import a key: PEM, a JWK, or with --alg HS256 a secret of 32 bytes or more",
		Long: "Import a key from FILE (-: standard input). It is read as PEM (PKCS#1, PKCS#8 or SEC 1) or as a JWK by what it\n" +
			"begins with. Anything else is an HS256 secret and needs --alg HS256; its bytes are the secret, without one line\n" +
			"break at the end. Without --activate the key verifies and does not sign.\n\n" +
			"An imported secret is shared as it is: everybody who holds it can mint tokens with it. It goes only to the agents that\n" +
			"--agents names, and signs only with --shared. `sidekey keys rotate --alg HS256` makes secrets that nobody else holds.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.readKeyFile(args[0])
			if err != nil {
				return err
			}
			body, err := keyImport(text, alg)
			if err != nil {
				return err
			}
			if activate {
				body["activate"] = true
			}
			if shared {
				body["shared"] = true
			}
			if len(agents) > 0 {
				body["agents"] = agents
			}
			for name, value := range map[string]string{"accept": accept, "user_id_claim": userID, "iss": iss, "aud": aud} {
				if value != "" {
					body[name] = value
				}
			}
			if acceptFor != 0 {
				body["accept_for"] = acceptFor.String()
			}
			return a.changeKey(cmd, "/admin/v1/keys/import", body)
		},
	}
	cmd.Flags().StringVar(&alg, "alg", "", "algorithm of the key (default what its kind says)")
	cmd.Flags().BoolVar(&activate, "activate", false, "sign with it once every agent holds it")
	cmd.Flags().BoolVar(&shared, "shared", false, "HS256: it may sign, though everybody who holds it can mint with it too")
	cmd.Flags().StringSliceVar(&agents, "agents", nil, "HS256: the agents that get the secret, by comma")
	cmd.Flags().StringVar(&accept, "accept", "", "simplejwt: it verifies the tokens that Django's Simple JWT made with it, and none of ours")
	cmd.Flags().DurationVar(&acceptFor, "accept-for", 0, "with --accept: for how long, and how long such a token may live (default issuer.refresh_lifetime)")
	cmd.Flags().StringVar(&userID, "user-id-claim", "", "with --accept: Simple JWT's USER_ID_CLAIM (default issuer.user_id_claim)")
	cmd.Flags().StringVar(&iss, "iss", "", "with --accept: Simple JWT's ISSUER, which its tokens must have then")
	cmd.Flags().StringVar(&aud, "aud", "", "with --accept: Simple JWT's AUDIENCE, which its tokens must have then")
	return a.addFormat(cmd)
}

func (a *app) readKeyFile(path string) ([]byte, error) {
	r := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("reading the key: %w", err)
		}
		defer f.Close()
		r = f
	}
	text, err := readSecret(r)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	return []byte(text), nil
}

// keyImport is the request for one key, by what the file holds.
func keyImport(text []byte, alg string) (map[string]any, error) {
	body := map[string]any{}
	if alg != "" {
		body["alg"] = alg
	}
	trimmed := bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN ")):
		body["pem"] = string(trimmed)
	case bytes.HasPrefix(trimmed, []byte("{")) && alg != "HS256" || isJWK(trimmed):
		if !json.Valid(trimmed) {
			return nil, fmt.Errorf("reading the key: it begins as a JWK and is no JSON")
		}
		body["jwk"] = json.RawMessage(trimmed)
	case alg == "HS256":
		body["secret"] = string(bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r")))
	default:
		return nil, usagef("the file is neither PEM nor a JWK; for a secret say --alg HS256")
	}
	return body, nil
}

// isJWK says that text is an object with a kty, so that a secret which begins with a brace is not taken for one.
func isJWK(text []byte) bool {
	var k struct {
		Type string `json:"kty"`
	}
	return json.Unmarshal(text, &k) == nil && k.Type != ""
}
