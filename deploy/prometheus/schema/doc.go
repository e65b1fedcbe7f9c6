// Package schema holds the alerts and the dashboard against Prometheus itself: its rule format, its PromQL parser and its engine, in
// which every alert is fired once. It is a module of its own, so that none of that is a dependency of sidekey: .ci/run tests it.
package schema
