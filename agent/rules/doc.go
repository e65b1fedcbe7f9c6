// Package rules decides who may do what: an ordered list of rules over host, method and path, each of which says how the
// caller must be known and what must be true of them. The first rule that matches decides; no match is a denial.
//
// A Set is immutable and safe for any number of goroutines. It is loaded whole or not at all: Parse names the line of the
// first rule that cannot be meant.
//
// Matching is an index of path segments and costs a walk of the path, whatever the number of rules. What a rule asks beyond
// fixed words is a CEL expression, compiled and priced when the rule is loaded.
package rules
