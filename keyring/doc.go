// Package keyring knows keys and what is signed with them: algorithms, the lifecycle of a key, JWK Sets in and out, tokens
// made and tokens proven, secrets sealed. It imports no other package of ours but the JSON reader below it.
//
// A [Key] has one algorithm and one id, and never prints its secret. A [Ring] is an immutable view of the keys that one
// process knows, with their states; readers share it behind an atomic pointer and writers make a new one with [Ring.With].
//
// Proving a token is split by what can change. [Ring.Prove] reads it strictly and checks the signature: dear, and true for
// ever. [Ring.Check] judges what was proven against an expectation and a time. [Ring.Recheck] does the same for a token
// that was checked before, without allocation: keys are retired and revoked, and time passes. A refusal is one type,
// [*Denial], whose Reason is the word that answers, logs and metrics share.
//
// golang-jwt signs, verifies signatures and validates claims here. It is lenient by nature (line breaks inside segments,
// crit, members named twice, claim names in any case, any typ, a missing sub all pass), so a strict reader of header and
// claims stands in front of it, and the algorithm is the key's, never the token's (RFC 8725 §3.1).
package keyring
