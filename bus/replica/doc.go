// Package replica holds what a reader of the log knows: the ring of keys and the revocations, at one
// position. An agent and an issuer each have one Replica.
//
// Follow keeps it at the head of the log, whatever happens to the log. Readers never wait: they load
// one immutable Snapshot, and then ask Revoked, which is a look-up in a concurrent set:
//
//	snap := r.Snapshot()        // first
//	...                         // prove the token with snap.Ring
//	if r.Revoked(&ids) { ... }  // then
//	if r.Forgotten(exp) { ... } // and last: a revocation is dropped only when it is said to be
//
// A revocation is visible before the Snapshot whose position covers it, so the answer is never older
// than the Snapshot.
//
// A Store keeps a copy on disk, a checkpoint and a journal, so that a process can start while the
// bus is away. Whatever in it is damaged or does not fit together is refused whole.
package replica
