// Package e2e holds sidekey against the real parts that it works with: Django and its authentication classes, databases,
// client libraries, browsers, proxies. Each suite runs the built binary and real servers as processes of their own, on
// loopback and in folders of their own.
//
// The suites take minutes and need packages that .ci/run installs. They run with SIDEKEY_LONG=1, as .ci/run sets it; a
// suite whose component is missing is skipped with its name, and fails where CI is set.
package e2e
