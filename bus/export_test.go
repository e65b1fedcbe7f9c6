package bus

// What tests outside the package look at from inside.
var (
	Older       = older
	SignedBytes = signedBytes
)

// LiveBuffer and Remembered are bounds that tests go beyond.
const (
	LiveBuffer = liveBuffer
	Remembered = remembered
	WriteBatch = writeBatch
)

// Subscriptions is how many a connection holds.
func (c *Conn) Subscriptions() int { return c.nc.NumSubscriptions() }

// JoinStep has a function called between the steps of joining, until the test ends.
func JoinStep(cleanup func(func()), step func(string) error) {
	was := joinStep
	joinStep = step
	cleanup(func() { joinStep = was })
}

// HeardNames is how many names a fleet remembers what it heard of.
func (f *Fleet) HeardNames() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.heard)
}
