// Package backup writes and reads backups: one file with all that a sidekey is, encrypted to whoever is to be able to
// restore it. [docs/backup.md] says how it is used and why it is consistent.
//
// A backup is an age file (age-encryption.org/v1) around a tar archive, so that `age -d FILE | tar -t` opens one without
// sidekey. Its members, in this order:
//
//	head.json                 Head: who made it, when, of which format
//	secrets.json              Secrets: the master key, the bus's keys, who was cut off
//	buckets/NAME/000001.jsonl the records of a state bucket, opened, one a line; so many members as it takes
//	log/image                 the log's state at one position, as a checkpoint has it (bus/replica)
//	buckets/keys/000001.jsonl the bucket of private keys, which is read last
//	audit/000001.jsonl        the audit's records as they stand on the bus, where they were asked for
//	manifest.json             Manifest: position, counts, and every member's size and SHA-256
//
// A file that ends before its manifest, or has anything behind it, is no backup.
//
// [docs/backup.md]: https://github.com/sidekey/sidekey/blob/main/docs/backup.md
package backup
