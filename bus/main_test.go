package bus_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more of these tests run at once than there are processors: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		flag.Set("test.parallel", "8") //nolint:errcheck // it is a number
	}
	os.Exit(m.Run())
}
