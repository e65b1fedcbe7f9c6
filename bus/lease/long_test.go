package lease_test

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
)

// long says that the long variants are wanted too: SIDEKEY_LONG=1, as .ci/run sets it.
var long = os.Getenv("SIDEKEY_LONG") == "1"

// dropFloor takes the floor out of a lease file.
func dropFloor(path string) {
	page, err := os.ReadFile(path)
	if err != nil || len(page) < 8 {
		return
	}
	var rec map[string]json.RawMessage
	if json.Unmarshal(page[8:8+binary.BigEndian.Uint32(page)], &rec) != nil {
		return
	}
	delete(rec, "floor")
	body, err := json.Marshal(rec)
	if err != nil {
		panic(err)
	}
	clear(page)
	binary.BigEndian.PutUint32(page, uint32(len(body)))
	binary.BigEndian.PutUint32(page[4:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	copy(page[8:], body)
	if err := os.WriteFile(path, page, 0o600); err != nil {
		panic(err)
	}
}
