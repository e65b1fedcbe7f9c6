// Package lease is the protocol by which an issuer can say for certain that nobody vouches any more
// without knowing an entry of the log (DESIGN §3; the rules by number are PROTOCOL's). It has two
// sides, both plain state machines without network or goroutines of their own: a Holder in every
// agent, which vouches only while its lease lives, and a Ledger in every issuer, which accounts for
// all leases and what their holders have acknowledged.
//
// The argument in one paragraph: a holder dates its lease from before it asked, and the issuer
// answers only when a tick that it appended after it was asked has been acknowledged. So a holder
// that has applied that tick knows every entry that was committed before its lease began. An entry
// committed later than that can be unknown to it only until the lease ends; and every lease is
// written down before its tick, so whoever reads the log up to an entry knows all leases that can
// lack it.
package lease
