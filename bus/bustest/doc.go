// Package bustest helps to test what stands on the bus: a log, buckets and a fleet in memory,
// which keep the contracts of bus's own, and the shipped embedded server in a test's folder.
// The contract tests that both pass are in package bus.
package bustest
