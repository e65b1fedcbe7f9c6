// Package issuer makes tokens: it proves users, keeps their sessions, owns the signing keys'
// lifecycle, and appends to the log what every agent has to know.
//
// An [Issuer] stands on the bus through the small interfaces of its [Parts]: the log that it
// writes, the replica in which it reads the log back, buckets of records that change by
// compare-and-set only, and the fleet of agents. Any number of Issuers may share one bus; none of
// them keeps state of its own.
//
//   - login.go, refresh.go, sessions.go: a login begins a session, a family of single-use refresh
//     tokens (DESIGN.md §7). A record fixes ids and times of its newest tokens, so they can be made
//     again byte for byte, and no token is stored.
//   - revoke.go, sweep.go, feed.go: the log first, the record second; whoever reads the revocation
//     of a session closes its record.
//   - lines.go, ring.go, keys.go: the ring as one decision sees it, what is due for it, and how a key
//     comes into the log and moves on: announced, active, retiring, retired (DESIGN.md §6, PROTOCOL.md
//     16 to 18). One key stands by, announced ahead. Every step is one entry, written only if nobody
//     has written about a key meanwhile, and what a rotation waits for is in the log too, so that any
//     issuer goes on where another stopped.
//   - rotate.go, emergency.go, import.go, keystatus.go: what an operator asks of the ring, and waits for.
//   - agents.go, private.go, refreshkeys.go: HS256 keys are derived for each audience from a master
//     that stays in the bucket "keys", and sealed to the agents that serve it (PROTOCOL.md 19).
//   - users.go, password.go, hashes.go, habits.go, limit.go: argon2id, and Django's hashes, behind a short queue.
//   - directory.go, recheck.go: users who live elsewhere, in a [Directory], which is asked at each login and refresh.
//   - credential.go, credentialtext.go: API keys and opaque tokens, whose texts are shown once; credentialnew.go, credentialimport.go,
//     credentiallogin.go make them, the record first, the entry second; credentialchange.go changes one only behind what it was
//     read from, and ends it in the log first; credentialsweep.go mends what a crash left; credentialused.go: last uses.
//   - http.go, simplejwt.go, devices.go, admin.go, keysadmin.go: the routes of API.md §4, thin. They decide nothing.
package issuer
