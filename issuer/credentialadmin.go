package issuer

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sidekey/sidekey/bus"
)

func (i *Issuer) adminListCredentials(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	if q.Get("sub") != "" && q.Get("username") != "" {
		return 0, nil, &InputError{"sub, username", "may not both be given"}
	}
	all, err := i.ListCredentials(r.Context(), q.Get("sub"), q.Get("username"))
	return http.StatusOK, map[string]any{"credentials": all}, err
}

func (i *Issuer) adminAddCredential(r *http.Request) (int, any, error) {
	var in NewCredential
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	made, err := i.AddCredential(r.Context(), in)
	return http.StatusCreated, made, err
}

func (i *Issuer) adminCredential(r *http.Request) (int, any, error) {
	c, err := i.Credential(r.Context(), r.PathValue("id"))
	return http.StatusOK, c, err
}

// credentialAnswer is a credential and what became of a change.
type credentialAnswer struct {
	*Credential
	*receiptAnswer
}

func (i *Issuer) adminChangeCredential(r *http.Request) (int, any, error) {
	var in struct {
		CredentialChange
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if in.CredentialChange == (CredentialChange{}) {
		return 0, nil, &bodyError{http.StatusBadRequest, "the body names nothing to change"}
	}
	if err := in.wait.check(); err != nil {
		return 0, nil, err
	}
	var c *Credential
	receipt, err := i.settled(r.Context(), in.limit(), func() (pos bus.Position, err error) {
		c, pos, err = i.ChangeCredential(r.Context(), r.PathValue("id"), in.CredentialChange)
		return pos, err
	})
	if err != nil || receipt == nil {
		return http.StatusOK, c, err
	}
	status, answer, err := receiptStatus(receipt, &in.wait, err)
	if err != nil {
		return 0, nil, err
	}
	return status, credentialAnswer{c, answer.(*receiptAnswer)}, nil
}

func (i *Issuer) adminDeleteCredential(r *http.Request) (int, any, error) {
	w, err := queryWait(r)
	if err != nil {
		return 0, nil, err
	}
	receipt, err := i.settled(r.Context(), w.limit(), func() (bus.Position, error) {
		return i.deleteCredential(r.Context(), r.PathValue("id"))
	})
	if err != nil || !w.fleet() {
		return http.StatusNoContent, nil, err
	}
	return receiptStatus(receipt, w, nil)
}

func (i *Issuer) adminRevokeCredential(r *http.Request) (int, any, error) {
	var in struct {
		Reason string `json:"reason"`
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.wait.check(); err != nil {
		return 0, nil, err
	}
	if len(in.Reason) > 1024 || !printable(in.Reason) {
		return 0, nil, &InputError{"reason", "must be 1024 bytes at most, without control characters"}
	}
	if in.Reason == "" {
		in.Reason = "revoked"
	}
	receipt, err := i.settled(r.Context(), in.limit(), func() (bus.Position, error) {
		return i.revokeCredential(r.Context(), r.PathValue("id"), in.Reason)
	})
	return receiptStatus(receipt, &in.wait, err)
}

func (i *Issuer) adminRotateCredential(r *http.Request) (int, any, error) {
	var in struct {
		Overlap string `json:"overlap"`
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.wait.check(); err != nil {
		return 0, nil, err
	}
	overlap := overlapDefault
	if in.Overlap != "" {
		var err error
		if overlap, err = time.ParseDuration(in.Overlap); err != nil {
			return 0, nil, &InputError{"overlap", fmt.Sprintf(`must be a duration of 0s to %s, such as "24h"`, overlapLongest)}
		}
	}
	answer := struct {
		*MadeCredential
		Old     *Credential    `json:"old"`
		Receipt *receiptAnswer `json:"receipt,omitempty"` // of the entry that says when the old one ends
	}{}
	receipt, err := i.settled(r.Context(), in.limit(), func() (pos bus.Position, err error) {
		answer.MadeCredential, answer.Old, pos, err = i.RotateCredential(r.Context(), r.PathValue("id"), overlap)
		return pos, err
	})
	if err != nil {
		return 0, nil, err
	}
	if receipt != nil {
		_, shown, err := receiptStatus(receipt, &in.wait, nil)
		if err != nil {
			return 0, nil, err
		}
		answer.Receipt = shown.(*receiptAnswer)
	}
	return http.StatusCreated, answer, nil
}

func (i *Issuer) adminImportCredentials(r *http.Request) (int, any, error) {
	var in struct {
		Type   bus.CredentialType `json:"type"`
		Tokens []ForeignToken     `json:"tokens"`
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	results, err := i.ImportTokens(r.Context(), in.Type, in.Tokens)
	return http.StatusOK, map[string]any{"results": results}, err
}
