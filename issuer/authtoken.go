package issuer

import (
	"errors"
	"net/http"
)

// errUnableToLogIn is AuthTokenSerializer's ValidationError.
//
//lint:ignore ST1005 the words are the REST framework's
var errUnableToLogIn = errors.New("Unable to log in with provided credentials.")

// authToken is the REST framework's obtain_auth_token, POST /api-token-auth/: {"username", "password"} for {"token"}. Unlike
// Simple JWT's endpoints it keeps the blanks around a password, and says 400 where the password is wrong.
func (i *Issuer) authToken() endpoint {
	return endpoint{required: []string{"username", "password"}, verbatim: "password", answer: func(r *http.Request, in map[string]string) (any, error) {
		c := Credentials{Username: in["username"], Password: in["password"], Address: clientAddress(r)}
		text, err := i.ObtainToken(r.Context(), c, i.cfg.APITokenLifetime)
		if errors.Is(err, ErrCredentials) {
			err = errUnableToLogIn
		}
		return slid{text}, err
	}}
}
