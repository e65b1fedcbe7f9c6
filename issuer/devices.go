package issuer

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/sidekey/sidekey/keyring"
)

// routeDevices adds a user's own sessions, with the user's access token.
func (i *Issuer) routeDevices(mux *http.ServeMux) {
	mux.HandleFunc("GET /sessions", i.asUser(i.listOwn))
	mux.HandleFunc("DELETE /sessions/{sid}", i.asUser(i.endOwn))
	mux.HandleFunc("DELETE /sessions", i.asUser(i.endOthers))
}

// asUser proves the access token and hands over who it speaks for (RFC 6750 §3).
func (i *Issuer) asUser(next func(http.ResponseWriter, *http.Request, *keyring.Token)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		raw := bearer(r)
		if raw == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="sidekey"`)
			problem(w, http.StatusUnauthorized, "give the user's access token: Authorization: Bearer …")
			return
		}
		var t *keyring.Token
		err := i.vouchFor(func() (err error) {
			t, err = i.proveAccess(raw)
			return err
		})
		var denied *keyring.Denial
		if errors.As(err, &denied) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="sidekey", error="invalid_token", error_description="%s"`, denied.Description()))
			writeJSON(w, http.StatusUnauthorized, map[string]any{
				"error": "invalid_token", "reason": denied.Reason, "error_description": denied.Description(),
			})
			return
		}
		if err != nil {
			i.fail(w, r, err)
			return
		}
		if !ofUser(t) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="sidekey", error="insufficient_scope"`)
			problem(w, http.StatusForbidden, "this takes the token that the user logged in for, not a client's own or an exchanged one")
			return
		}
		next(w, r, t)
	}
}

// ofUser tells whether a token is the user's own. A client's own has a sub that may be no user's; an exchanged one was given to
// somebody else to do less with than to end the user's sessions.
func ofUser(t *keyring.Token) bool {
	return t.Accept != "" || t.Claims.SessionID != "" && t.Claims.SubjectClientID == ""
}

func (i *Issuer) listOwn(w http.ResponseWriter, r *http.Request, t *keyring.Token) {
	all, err := i.ListSessions(r.Context(), t.Claims.Subject)
	if err != nil {
		i.fail(w, r, err)
		return
	}
	type own struct {
		Session
		Current bool `json:"current"`
	}
	mine := make([]own, 0, len(all))
	for _, s := range all {
		if s.Closed == 0 {
			mine = append(mine, own{s, s.ID == t.Claims.SessionID})
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"sessions": mine})
}

// endOwn ends one session of the token's own user; another user's is as one that does not exist.
func (i *Issuer) endOwn(w http.ResponseWriter, r *http.Request, t *keyring.Token) {
	s, _, err := i.session(r.Context(), t.Claims.Subject, r.PathValue("sid"))
	if err == nil && s.Closed == 0 {
		_, err = i.endSession(r.Context(), s.Subject, s.ID, "ended by its user")
	}
	if err != nil {
		i.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (i *Issuer) endOthers(w http.ResponseWriter, r *http.Request, t *keyring.Token) {
	if q := r.URL.Query(); len(q) != 1 || q.Get("except") != "current" {
		problem(w, http.StatusBadRequest, "say which: DELETE /sessions/{sid}, or DELETE /sessions?except=current")
		return
	}
	n, err := i.EndOthers(r.Context(), t.Claims.Subject, t.Claims.SessionID)
	if err != nil {
		i.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]int{"ended": n})
}
