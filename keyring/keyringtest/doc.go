// Package keyringtest has fixed keys and makers of rings and tokens, for tests. Its keys are public: nothing else may trust
// them. A test mints with [Token] and judges with [Ring] and [Expect]:
//
//	key := keyringtest.RSA(t)
//	ring := keyringtest.Ring(t, keyringtest.Issuer, keyringtest.Audience, key.Public())
//	token := keyringtest.Token(t, key, func(c *keyring.Claims) { c.Subject = "bob" })
//	proven, err := ring.Verify(token, keyringtest.Expect())
//
// Times are those of time.Now, so all of it also works inside testing/synctest.
package keyringtest
