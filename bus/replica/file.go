package replica

import "github.com/sidekey/sidekey/bus"

// WriteFile is bus.WriteFile.
func WriteFile(path string, content []byte) error { return bus.WriteFile(path, content) }
