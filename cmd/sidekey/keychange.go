package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// keyWaitLongest is the longest that an issuer waits before it answers a change of the ring.
const keyWaitLongest = 50 * time.Second

// keyAnswer is what a change of the ring answers: the key, and what is still missing before it signs.
type keyAnswer struct {
	KeyID       string   `json:"kid"`
	Alg         string   `json:"alg"`
	State       string   `json:"state"`
	ActivatesAt float64  `json:"activates_at"`
	Revoked     []string `json:"revoked"`
	Risk        string   `json:"risk"`
	Accept      string   `json:"accept"`  // the maker of the tokens that it verifies, none of ours
	Expires     float64  `json:"expires"` // until when
	receipt
}

// changeKey posts to the ring's API and says what became of the key.
func (a *app) changeKey(cmd *cobra.Command, path string, body map[string]any) error {
	_, r, k, err := a.postKey(cmd, path, body)
	if err != nil {
		return err
	}
	return a.sayKey(r, k)
}

func (a *app) postKey(cmd *cobra.Command, path string, body map[string]any) (*client, reply, *keyAnswer, error) {
	c, err := a.adminClient()
	if err != nil {
		return nil, reply{}, nil, err
	}
	r, err := c.call(cmd.Context(), http.MethodPost, path, body)
	if err != nil {
		return nil, reply{}, nil, err
	}
	k := new(keyAnswer)
	if err := r.decode(k); err != nil {
		return nil, reply{}, nil, err
	}
	if k.Risk != "" {
		fmt.Fprintf(a.stderr, "sidekey: forced, at this risk: %s\n", k.Risk)
	}
	return c, r, k, nil
}

// sayKey prints an answer. A key that only waits to have been published long enough is a success; one that waits for
// agents is none yet.
func (a *app) sayKey(r reply, k *keyAnswer) error {
	ahead := r.status == http.StatusAccepted && k.ActivatesAt > float64(time.Now().Unix())
	err := a.answer(r.body, func(w *tabwriter.Writer) {
		line := fmt.Sprintf("key %s (%s) is %s since entry %d", k.KeyID, k.Alg, k.State, k.Seq)
		if k.Accept != "" {
			line = fmt.Sprintf("key %s (%s) accepts the tokens of %s from entry %d until %s", k.KeyID, k.Alg, k.Accept, k.Seq, when(k.Expires))
		}
		if ahead {
			line += ", and signs from " + when(k.ActivatesAt)
		}
		if len(k.Revoked) > 0 {
			line += "; revoked: " + names(k.Revoked)
		}
		row(w, line)
	})
	if err != nil || r.status != http.StatusAccepted || ahead {
		return err
	}
	if len(k.Pending) == 0 {
		return fmt.Errorf("key %s is %s and not yet what was asked for; `sidekey keys list` shows when it is", k.KeyID, k.State)
	}
	return fmt.Errorf("key %s is %s and waits for %s to acknowledge it; start what is down, or wait until its lease has ended; --force goes on without, "+
		"and those may refuse new tokens until they have caught up", k.KeyID, k.State, strings.Join(k.Pending, ", "))
}

// withdrawKey makes a change that revokes keys, and with --wait watches its receipt.
func (a *app) withdrawKey(cmd *cobra.Command, w *waiting, path string, body map[string]any) error {
	if !w.on {
		return a.changeKey(cmd, path, body)
	}
	began := time.Now()
	body["timeout"] = min(w.timeout, keyWaitLongest).String() // for the key that is to sign instead
	c, r, k, err := a.postKey(cmd, path, body)
	if err != nil {
		return err
	}
	if r.status == http.StatusAccepted {
		return a.sayKey(r, k)
	}
	lost := a.watch(cmd.Context(), c, &k.receipt, began, w.timeout)
	if r.body, err = k.merged(r.body); err != nil {
		return err
	}
	done := fmt.Sprintf("key %s (%s) is %s; revoked: %s", k.KeyID, k.Alg, k.State, names(k.Revoked))
	if len(k.Revoked) == 0 {
		done = fmt.Sprintf("key %s is revoked", k.KeyID)
	}
	return a.finishWith(r.body, &k.receipt, done, lost)
}

// merged puts the newest receipt into the answer that it began with.
func (k *keyAnswer) merged(body []byte) ([]byte, error) {
	all := map[string]any{}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, err
	}
	delete(all, "next_ms")
	newest, err := json.Marshal(k.receipt)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(newest, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

func (a *app) keysRotateCommand() *cobra.Command {
	var alg string
	var bits int
	var ahead time.Duration
	var force, emergency bool
	var w waiting
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Sign with the key that stands by, once every agent holds it",
		Long: "Sign with the key that stands by, which every agent holds already unless it is down or cut off. An agent that may\n" +
			"vouch without knowing the key is named, and the key stays announced: it signs as soon as that agent has acknowledged\n" +
			"it, or its lease has ended. --force does not wait: until such an agent has caught up it refuses new tokens, with 401\n" +
			"unknown_key or 503.\n\n" +
			"--emergency is for a key that somebody else may have: the next key signs at once, and then every token of the old one\n" +
			"is refused everywhere. With --wait the command returns when no agent can accept one any more.",
		Args: cobra.NoArgs,
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
			if force {
				body["force"] = true
			}
			if emergency {
				body["emergency"] = true
				return a.withdrawKey(cmd, &w, "/admin/v1/keys/rotate", body)
			}
			if w.on {
				body["wait"], body["timeout"] = "fleet", min(w.timeout, keyWaitLongest).String()
			}
			return a.changeKey(cmd, "/admin/v1/keys/rotate", body)
		},
	}
	cmd.Flags().StringVar(&alg, "alg", "", "algorithm of the new key, and of the ring from then on (default the ring's)")
	cmd.Flags().IntVar(&bits, "bits", 0, "size of an RSA key (default keys.bits)")
	cmd.Flags().DurationVar(&ahead, "publish-ahead", 0, "how long it is announced first (default keys.publish_ahead)")
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for agents: those that have not caught up refuse new tokens until they have")
	cmd.Flags().BoolVar(&emergency, "emergency", false, "at once, and revoke the key that signs now: every token of it is refused")
	for _, name := range []string{"alg", "bits", "publish-ahead"} {
		cmd.MarkFlagsMutuallyExclusive("emergency", name)
	}
	return a.addFormat(a.addWait(cmd, &w))
}

func (a *app) keysRevokeCommand() *cobra.Command {
	var w waiting
	var force bool
	cmd := &cobra.Command{
		Use:   "revoke KID",
		Short: "Refuse every token of a key, everywhere; an active key is replaced first",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if force {
				body["force"] = true
			}
			return a.withdrawKey(cmd, &w, "/admin/v1/keys/"+url.PathEscape(args[0])+"/revoke", body)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace an active key without waiting for agents: those that have not caught up refuse new tokens until they have")
	return a.addFormat(a.addWait(cmd, &w))
}
