package issuer

import "time"

// clientLimits slow down the guessing of secrets. Only failures count, and a right secret passes a limit on its client,
// since anybody knows a client_id and could lock its owner out; an address that failed too often is sent away unheard.
// Loopback has no limit of its own, since a proxy on this host speaks for all its clients.
// nil limits nothing.
type clientLimits struct{ pairs, addresses *buckets }

func newClientLimits(perMinute int) *clientLimits {
	if perMinute == 0 {
		return nil
	}
	return &clientLimits{pairs: newBuckets(perMinute, false), addresses: newBuckets(10*perMinute, false)}
}

// before gives the *BusyError that sends an address away.
func (l *clientLimits) before(address string, now time.Time) error {
	if l == nil {
		return nil
	}
	if source, ok := limitedSource(address); ok {
		if wait := l.addresses.peek(source, now); wait > 0 {
			return &BusyError{Limited: true, RetryAfter: wait}
		}
	}
	return nil
}

// failed counts a failure, and gives the *BusyError to answer it with where there were too many.
func (l *clientLimits) failed(id, address string, now time.Time) error {
	if l == nil {
		return nil
	}
	source, ok := limitedSource(address)
	if ok {
		l.addresses.take(source, now)
	}
	if wait := l.pairs.take(loggedClient(id)+" "+source, now); wait > 0 {
		return &BusyError{Limited: true, RetryAfter: wait}
	}
	return nil
}
