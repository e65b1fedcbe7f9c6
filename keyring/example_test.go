package keyring_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/sidekey/sidekey/keyring"
)

// A key is made, put in a ring, signs a token, and the ring proves it. An hour later the same token is refused.
func Example() {
	key, err := keyring.Generate(keyring.EdDSA, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	ring := keyring.NewRing("https://issuer.example", "https://api.example", keyring.KeyRecord{
		KeyID: key.ID(), Alg: key.Alg(), State: keyring.Active, Key: key.Public(),
	})

	now := time.Now()
	token, err := key.Sign(keyring.AccessToken, keyring.Claims{
		Issuer: ring.Issuer(), Subject: "alice", Audience: []string{ring.Audience()}, ID: "9f2c",
		IssuedAt: keyring.At(now), ExpiresAt: keyring.At(now.Add(15 * time.Minute)),
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	want := keyring.Expect{Type: keyring.AccessToken, Leeway: 5 * time.Second, Now: now}
	proven, err := ring.Verify(token, want)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("subject:", proven.Claims.Subject)

	want.Now = now.Add(time.Hour)
	var denial *keyring.Denial
	if errors.As(ring.Recheck(proven, want), &denial) {
		fmt.Println("an hour later:", denial.Reason)
	}
	// Output:
	// subject: alice
	// an hour later: expired
}
