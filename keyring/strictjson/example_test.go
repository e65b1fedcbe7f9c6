package strictjson_test

import (
	"fmt"

	"github.com/sidekey/sidekey/keyring/strictjson"
)

// A request is read without copying; what is not said twice, and not in other letters, counts.
func ExampleObject() {
	var token []byte
	body := []byte(`{"token": "ey\u004a…", "unknown": [1, {}]}`)
	err := strictjson.Object(body, []string{"token"}, func(name []byte, v strictjson.Value) error {
		if string(name) == "token" {
			token, _ = v.Bytes(nil)
		}
		return nil
	})
	fmt.Println(string(token), err)

	err = strictjson.Object([]byte(`{"token": "a", "Token": "b"}`), []string{"token"}, nil)
	fmt.Println(err)
	// Output:
	// eyJ… <nil>
	// a member whose name differs from a known one only in case at byte 24
}
