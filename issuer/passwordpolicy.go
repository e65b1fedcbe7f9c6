package issuer

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/ccojocar/zxcvbn-go/data"
)

// commonPasswords are those that everybody tries first, in lower case: zxcvbn's list, which that library embeds. It is read at
// the first password that is set, and never again.
var commonPasswords = sync.OnceValues(func() (map[string]bool, error) {
	text, err := data.Asset("data/Passwords.json")
	var all struct{ List []string }
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the list of common passwords: %w", err)
	}
	common := make(map[string]bool, len(all.List))
	for _, p := range all.List {
		common[strings.ToLower(p)] = true
	}
	return common, nil
})

// checkNewPassword judges a password that is set for a user. NIST SP 800-63B §5.1.1.2: a length and a list, no rules of
// which characters there must be. A password that was stored before is not judged again.
func (i *Issuer) checkNewPassword(username, password string) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(password); n < i.cfg.MinPassword {
		return &InputError{"password", fmt.Sprintf("must be %d characters at least", i.cfg.MinPassword)}
	}
	if !i.cfg.RefuseCommon {
		return nil
	}
	if strings.EqualFold(password, username) {
		return &InputError{"password", "may not be the user name"}
	}
	common, err := commonPasswords()
	if err != nil {
		return err // fails closed
	}
	if common[strings.ToLower(password)] {
		return &InputError{"password", "is one of those that everybody tries first; take another"}
	}
	return nil
}
