package issuer

import (
	"net/http"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// clientRoutes are the admin API's of OAuth clients.
func (i *Issuer) clientRoutes() map[string]func(*http.Request) (int, any, error) {
	return map[string]func(*http.Request) (int, any, error){
		"GET /admin/v1/clients":                     i.adminListClients,
		"POST /admin/v1/clients":                    i.adminAddClient,
		"GET /admin/v1/clients/{client_id}":         i.adminClient,
		"PATCH /admin/v1/clients/{client_id}":       i.adminChangeClient,
		"DELETE /admin/v1/clients/{client_id}":      i.adminDeleteClient,
		"POST /admin/v1/clients/{client_id}/secret": i.adminRotateSecret,
	}
}

// clientAnswer is a client, its new secret where there is one, and the receipt where somebody is waited for.
type clientAnswer struct {
	*Client
	Secret string `json:"client_secret,omitempty"`
	*receiptAnswer
}

func (i *Issuer) adminListClients(r *http.Request) (int, any, error) {
	all, err := i.ListClients(r.Context())
	return http.StatusOK, map[string]any{"clients": all}, err
}

func (i *Issuer) adminAddClient(r *http.Request) (int, any, error) {
	var in NewClient
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	c, secret, err := i.AddClient(r.Context(), in)
	return http.StatusCreated, clientAnswer{Client: c, Secret: secret}, err
}

func (i *Issuer) adminClient(r *http.Request) (int, any, error) {
	c, err := i.Client(r.Context(), r.PathValue("client_id"))
	return http.StatusOK, c, err
}

func (i *Issuer) adminChangeClient(r *http.Request) (int, any, error) {
	var in struct {
		ClientChange
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if in.ClientChange == (ClientChange{}) {
		return 0, nil, &bodyError{http.StatusBadRequest, "the body names nothing to change"}
	}
	return i.answerClient(r, &in.wait, http.StatusOK, func() (c *Client, secret string, cut bus.Position, err error) {
		c, cut, err = i.changeClient(r.Context(), r.PathValue("client_id"), in.ClientChange)
		return c, "", cut, err
	})
}

// defaultOverlap is how long a rotated secret stays good where the request does not say.
const defaultOverlap = 24 * time.Hour

func (i *Issuer) adminRotateSecret(r *http.Request) (int, any, error) {
	var in struct {
		Overlap *string `json:"overlap"`
		wait
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	overlap := defaultOverlap
	if in.Overlap != nil {
		var err error
		if overlap, err = time.ParseDuration(*in.Overlap); err != nil {
			return 0, nil, &InputError{"overlap", `must be a duration such as "24h"; "0s" ends the old secret at once`}
		}
	}
	return i.answerClient(r, &in.wait, http.StatusCreated, func() (*Client, string, bus.Position, error) {
		return i.rotateSecret(r.Context(), r.PathValue("client_id"), overlap)
	})
}

// answerClient does something to a client and, where it cut tokens off and the request says so, awaits the agents.
func (i *Issuer) answerClient(r *http.Request, w *wait, status int, do func() (*Client, string, bus.Position, error)) (int, any, error) {
	if err := w.check(); err != nil {
		return 0, nil, err
	}
	answer := clientAnswer{}
	receipt, err := i.settled(r.Context(), w.limit(), func() (cut bus.Position, err error) {
		answer.Client, answer.Secret, cut, err = do()
		return cut, err
	})
	if answer.Client != nil && answer.Secret != "" && err != nil {
		// The secret is made and will not be shown again: it goes out, though nobody knows who has read the cutoff.
		i.log.Warn("a client's secret is replaced, but the agents could not be asked", "client_id", answer.ID, "error", err)
		return http.StatusAccepted, answer, nil
	}
	if err != nil || !w.fleet() || receipt == nil {
		return status, answer, err
	}
	code, got, err := receiptStatus(receipt, w, nil)
	if code == http.StatusAccepted {
		status = code
	}
	answer.receiptAnswer = got.(*receiptAnswer)
	return status, answer, err
}

func (i *Issuer) adminDeleteClient(r *http.Request) (int, any, error) {
	w, err := queryWait(r)
	if err != nil {
		return 0, nil, err
	}
	receipt, err := i.settled(r.Context(), w.limit(), func() (bus.Position, error) {
		return i.deleteClient(r.Context(), r.PathValue("client_id"))
	})
	if err != nil || !w.fleet() {
		return http.StatusNoContent, nil, err
	}
	return receiptStatus(receipt, w, nil)
}
