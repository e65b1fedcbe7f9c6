// Package schema holds the files of deploy/proxies that cannot be run here against the types of their own projects. It is a
// module of its own, so that those types are no dependency of sidekey: .ci/run tests it, `go test ./...` at the top does not.
package schema
