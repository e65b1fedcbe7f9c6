package issuer

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// AdminHandler serves /admin/v1/ to who presents a token that lets in: AdminToken.Is.
func (i *Issuer) AdminHandler(letsIn func(token string) bool) http.Handler {
	open := i.adminRoutes(false)
	return i.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := bearer(r); token == "" || !letsIn(token) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="sidekey admin"`)
			i.refusal(r.Context(), "admin request without the admin token", "method", r.Method, "path", auditPath(r))
			problem(w, http.StatusUnauthorized, "give the admin token: Authorization: Bearer …, as <data_dir>/admin.token has it")
			return
		}
		open.ServeHTTP(w, r.WithContext(withActor(r.Context(), "admin token")))
	}))
}

// LocalAdminHandler serves /admin/v1/ without asking for a token: for a unix socket, whose file
// mode says who may connect, and for nothing else.
func (i *Issuer) LocalAdminHandler() http.Handler {
	open := i.adminRoutes(true)
	return i.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open.ServeHTTP(w, r.WithContext(withActor(r.Context(), "unix socket")))
	}))
}

// adminRoutes are the admin API; local, where who asks may read the issuer's own files too.
func (i *Issuer) adminRoutes(local bool) http.Handler {
	mux := http.NewServeMux()
	routes := map[string]func(*http.Request) (int, any, error){
		"GET /admin/v1/status":              i.adminStatus,
		"GET /admin/v1/keys":                i.adminListKeys,
		"POST /admin/v1/keys/rotate":        i.adminRotate,
		"POST /admin/v1/keys/import":        i.adminImport,
		"POST /admin/v1/keys/{kid}/revoke":  i.adminRevokeKey,
		"POST /admin/v1/revocations":        i.adminRevoke,
		"GET /admin/v1/revocations":         i.adminListRevocations,
		"GET /admin/v1/revocations/{seq}":   i.adminReceipt,
		"POST /admin/v1/verify":             i.adminVerify,
		"POST /admin/v1/admin-token/rotate": i.adminRotateToken,
		"GET /admin/v1/agents":              i.adminListAgents,
		"POST /admin/v1/agents":             i.adminInviteAgent,
		"DELETE /admin/v1/agents/{name}":    i.adminRemoveAgent,
		"GET /admin/v1/issuers":             i.adminListIssuers,
		"POST /admin/v1/issuers":            i.adminInviteIssuer,
		"DELETE /admin/v1/issuers/{name}":   i.adminRemoveIssuer,
		"GET /admin/v1/sessions":            i.adminListSessions,
		"DELETE /admin/v1/sessions/{sid}":   i.adminEndSession,
		"GET /admin/v1/users":               i.adminListUsers,
		"POST /admin/v1/users":              i.adminAddUser,
		"GET /admin/v1/users/{username}":    i.adminUser,
		"PATCH /admin/v1/users/{username}":  i.adminChangeUser,
		"DELETE /admin/v1/users/{username}": i.adminDeleteUser,

		"GET /admin/v1/credentials":              i.adminListCredentials,
		"POST /admin/v1/credentials":             i.adminAddCredential,
		"POST /admin/v1/credentials/import":      i.adminImportCredentials,
		"GET /admin/v1/credentials/{id}":         i.adminCredential,
		"PATCH /admin/v1/credentials/{id}":       i.adminChangeCredential,
		"DELETE /admin/v1/credentials/{id}":      i.adminDeleteCredential,
		"POST /admin/v1/credentials/{id}/revoke": i.adminRevokeCredential,
		"POST /admin/v1/credentials/{id}/rotate": i.adminRotateCredential,
	}
	maps.Copy(routes, i.clientRoutes())
	maps.Copy(routes, i.ruleRoutes())
	for pattern, serve := range routes {
		mux.HandleFunc(pattern, i.audited(func(w http.ResponseWriter, r *http.Request) {
			status, answer, err := serve(r)
			switch {
			case err != nil:
				i.fail(w, r, err)
			case answer == nil:
				w.WriteHeader(status)
			default:
				writeJSON(w, status, answer)
			}
		}))
	}
	mux.HandleFunc("GET /admin/v1/audit", i.serveAudit)
	mux.HandleFunc("POST /admin/v1/backup", func(w http.ResponseWriter, r *http.Request) { i.serveBackup(w, r, local) })
	mux.HandleFunc("/", elsewhere(mux))
	return mux
}

// elsewhere answers for what a mux has no route for: a path that is there for another method is 405, with what it is there
// for (RFC 9110 §15.5.6), any other is 404.
func elsewhere(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if allowed := allowedMethods(mux, r); allowed != "" {
			w.Header().Set("Allow", allowed)
			problem(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s takes %s, not %s", r.URL.Path, allowed, r.Method))
			return
		}
		notFound(w, r)
	}
}

// allowedMethods tells for which methods a mux has a route of its own for the request's path.
func allowedMethods(mux *http.ServeMux, r *http.Request) string {
	allowed := ""
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := mux.Handler(probe); pattern != "/" && pattern != "" {
			if allowed != "" {
				allowed += ", "
			}
			allowed += method
		}
	}
	return allowed
}

// numericDate gives NumericDate seconds, 0 for the zero time.
func numericDate(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func (i *Issuer) adminRevoke(r *http.Request) (int, any, error) {
	var in struct {
		Target
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.wait.check(); err != nil {
		return 0, nil, err
	}
	receipt, err := i.RevokeAndAwait(r.Context(), in.Target, in.limit())
	return receiptStatus(receipt, &in.wait, err)
}

func (i *Issuer) adminListRevocations(*http.Request) (int, any, error) {
	return http.StatusOK, map[string]any{"revocations": i.Feed.Recent(), "live": i.Replica.Revocations()}, nil
}

// adminReceipt gives the receipt of the entry at a sequence as it now stands, whichever issuer
// appended it, and whatever it says: a revocation, or a key's next state.
func (i *Issuer) adminReceipt(r *http.Request) (int, any, error) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err != nil {
		return 0, nil, &InputError{"seq", "must be a sequence of the log"}
	}
	read := i.Replica.Snapshot().Position
	if seq == 0 || seq > read.Seq {
		return 0, nil, fmt.Errorf("reading the receipt of entry %d: this issuer has read %d: %w", seq, read.Seq, ErrNotFound)
	}
	receipt, err := i.Await(r.Context(), bus.Position{Epoch: read.Epoch, Seq: seq}, 0)
	return receiptStatus(receipt, new(wait), err)
}

func (i *Issuer) adminListSessions(r *http.Request) (int, any, error) {
	all, err := i.ListSessions(r.Context(), r.URL.Query().Get("sub"))
	return http.StatusOK, map[string]any{"sessions": all}, err
}

func (i *Issuer) adminEndSession(r *http.Request) (int, any, error) {
	w, err := queryWait(r)
	if err != nil {
		return 0, nil, err
	}
	receipt, err := i.EndSession(r.Context(), r.PathValue("sid"), "ended by an administrator", w.limit())
	return receiptStatus(receipt, w, err)
}

func (i *Issuer) adminListUsers(r *http.Request) (int, any, error) {
	all, err := i.ListUsers(r.Context())
	return http.StatusOK, map[string]any{"users": all}, err
}

func (i *Issuer) adminAddUser(r *http.Request) (int, any, error) {
	var in NewUser
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	user, err := i.AddUser(r.Context(), in)
	return http.StatusCreated, user, err
}

func (i *Issuer) adminUser(r *http.Request) (int, any, error) {
	user, err := i.User(r.Context(), r.PathValue("username"))
	return http.StatusOK, user, err
}

func (i *Issuer) adminChangeUser(r *http.Request) (int, any, error) {
	var in struct {
		UserChange
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if in.UserChange == (UserChange{}) {
		return 0, nil, &bodyError{http.StatusBadRequest, "the body names nothing to change"}
	}
	if err := in.wait.check(); err != nil {
		return 0, nil, err
	}
	var user *User
	receipt, err := i.settled(r.Context(), in.limit(), func() (cut bus.Position, err error) {
		user, cut, err = i.changeUser(r.Context(), r.PathValue("username"), in.UserChange)
		return cut, err
	})
	status, answer, err := receiptStatus(receipt, &in.wait, err)
	if err != nil || !in.fleet() || receipt == nil {
		return http.StatusOK, user, err // nothing was withdrawn, or nobody is waited for
	}
	return status, struct {
		*User
		*receiptAnswer
	}{user, answer.(*receiptAnswer)}, nil
}

func (i *Issuer) adminDeleteUser(r *http.Request) (int, any, error) {
	w, err := queryWait(r)
	if err != nil {
		return 0, nil, err
	}
	receipt, err := i.settled(r.Context(), w.limit(), func() (bus.Position, error) {
		return i.deleteUser(r.Context(), r.PathValue("username"))
	})
	if err != nil || !w.fleet() {
		return http.StatusNoContent, nil, err
	}
	return receiptStatus(receipt, w, nil)
}
