package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
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
				} `json:"keys"`
			}
			return a.list(cmd, "/admin/v1/keys", &answer, func(w *tabwriter.Writer) {
				row(w, "KID", "ALG", "BITS", "STATE", "AUD", "CREATED", "RETIRED", "SEQ")
				for _, k := range answer.Keys {
					row(w, k.KeyID, k.Alg, k.Bits, k.State, k.Audience, when(k.Created), when(k.RetiredAt), k.Seq)
				}
			})
		},
	})
}

// keyAnswer is what a change of the ring answers: the key, and what is still missing before it signs.
type keyAnswer struct {
	KeyID       string   `json:"kid"`
	Alg         string   `json:"alg"`
	State       string   `json:"state"`
	Seq         uint64   `json:"seq"`
	ActivatesAt float64  `json:"activates_at"`
	Pending     []string `json:"pending"`
}

// changeKey posts to the ring's API and says in one line what became of the key. A key that only waits to have been
// published long enough is a success; one that waits for agents is none yet.
func (a *app) changeKey(cmd *cobra.Command, path string, body map[string]any) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	r, err := c.call(cmd.Context(), http.MethodPost, path, body)
	if err != nil {
		return err
	}
	var k keyAnswer
	if err := r.decode(&k); err != nil {
		return err
	}
	ahead := r.status == http.StatusAccepted && k.ActivatesAt > float64(time.Now().Unix())
	err = a.answer(r.body, func(w *tabwriter.Writer) {
		line := fmt.Sprintf("key %s (%s) is %s since entry %d", k.KeyID, k.Alg, k.State, k.Seq)
		if ahead {
			line += ", and signs from " + when(k.ActivatesAt)
		}
		row(w, line)
	})
	if err != nil || r.status != http.StatusAccepted || ahead {
		return err
	}
	if len(k.Pending) == 0 {
		return fmt.Errorf("key %s is %s and not yet what was asked for; `sidekey keys list` shows when it is", k.KeyID, k.State)
	}
	return fmt.Errorf("key %s is %s and waits for %s to acknowledge it; start what is down, or take it out with `sidekey agents remove`",
		k.KeyID, k.State, strings.Join(k.Pending, ", "))
}

func (a *app) keysRotateCommand() *cobra.Command {
	var alg string
	var bits int
	var ahead time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Announce a new key, and sign with it once every agent holds it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{}
			flags := cmd.Flags()
			if flags.Changed("alg") {
				body["alg"] = alg
			}
			if flags.Changed("bits") {
				body["bits"] = bits
			}
			if flags.Changed("publish-ahead") {
				body["publish_ahead"] = ahead.String()
			}
			return a.changeKey(cmd, "/admin/v1/keys/rotate", body)
		},
	}
	cmd.Flags().StringVar(&alg, "alg", "", "algorithm of the new key, and of the ring from then on (default the ring's)")
	cmd.Flags().IntVar(&bits, "bits", 0, "size of an RSA key (default keys.bits)")
	cmd.Flags().DurationVar(&ahead, "publish-ahead", 0, "how long it is announced first (default keys.publish_ahead)")
	return a.addFormat(cmd)
}

func (a *app) keysImportCommand() *cobra.Command {
	var alg string
	var activate bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import a key: PEM, a JWK, or with --alg HS256 a secret of 32 bytes or more",
		Long: "Import a key from FILE (-: standard input). It is read as PEM (PKCS#1, PKCS#8 or SEC 1) or as a JWK by what it\n" +
			"begins with. Anything else is an HS256 secret and needs --alg HS256; its bytes are the secret, without one line\n" +
			"break at the end. Without --activate the key verifies and does not sign.",
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
			return a.changeKey(cmd, "/admin/v1/keys/import", body)
		},
	}
	cmd.Flags().StringVar(&alg, "alg", "", "algorithm of the key (default what its kind says)")
	cmd.Flags().BoolVar(&activate, "activate", false, "sign with it once every agent holds it")
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

func (a *app) keysRevokeCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "revoke KID",
		Short: "Refuse every token of a key, everywhere; an active key is replaced first",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeKey(cmd, "/admin/v1/keys/"+url.PathEscape(args[0])+"/revoke", map[string]any{})
		},
	})
}
