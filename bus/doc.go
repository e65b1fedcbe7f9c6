// Package bus is the one place that knows NATS: the embedded server and the connection to it or to
// another, the signed log, the state buckets, enrolment and what issuers and agents say to each
// other. What is above it sees plain data: an Entry is a Fact and a Position.
//
// The log is one JetStream stream. An issuer appends to it with a Log; whoever reads does so with a
// Reader, which believes nothing but the authority's signature: not the server, and no other agent.
//
//   - Every entry is signed over its subject, epoch, sequence and body, so it can be neither altered
//     nor moved. It is stored behind the very entry that its writer knew, or not at all, so several
//     issuers may write at once.
//   - Every tick carries a hash chained over all entries before it. A hole, a fork and a rollback
//     show at the next tick at the latest (ErrRollback), a log begun anew by its epoch (ErrEpoch).
//   - A checkpoint is a signed image of all that still matters at one position. The log behind the
//     one before the newest is purged; a reader left behind is told (ErrBehind) and takes it.
//
// A Bucket is a NATS KV bucket whose records are sealed under the issuers' master key. Who owns the
// bus can destroy or withhold, but can neither read, write nor move a record; a Guard, and the
// versions that a process has seen, show an old one that is put back.
//
// Nobody uses the bus without a JWT of its Keys. Agents stand in an account of their own, which sees
// of the issuers' account what that exports, and each may speak under its own name only. An
// Enrolment invites: a Token is good for one Join, by which an agent or an issuer gets an Identity.
// Private keys are made where they stay; what is handed over is proven by what the token pins.
package bus
