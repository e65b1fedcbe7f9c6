package rules

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// costLimit bounds one evaluation, in CEL's units: about one for each step. What costs more denies.
const costLimit = 20_000

// maxExpression is how long an expression may be, in bytes.
const maxExpression = 4096

// What one expression may hold, so that no text of rules takes long to read: the checker takes the fourth power of the depth of
// a type, and two hundred brackets took it minutes. A set that the log hands out is read between two entries, and revocations
// wait behind it (BenchmarkReadSet).
const (
	maxDepth = 16   // of brackets, and of members and operators in a row
	maxNodes = 1000 // after macros were expanded
	maxRegex = 250  // instructions of a regular expression's program, also of one that is made while it is evaluated
)

// environment is what an expression may name. Names are typed, so that a misspelt one is an error when a rule is loaded.
var environment = must(cel.NewEnv(
	cel.Variable("request.method", cel.StringType),
	cel.Variable("request.scheme", cel.StringType),
	cel.Variable("request.host", cel.StringType),
	cel.Variable("request.path", cel.StringType),                                             // canonical
	cel.Variable("request.params", cel.MapType(cel.StringType, cel.StringType)),              // the pattern's named segments
	cel.Variable("request.query", cel.MapType(cel.StringType, cel.ListType(cel.StringType))), // decoded
	cel.Variable("request.headers", cel.MapType(cel.StringType, cel.StringType)),             // names in lower case
	cel.Variable("request.address", cel.StringType),
	cel.Variable("principal.subject", cel.StringType),
	cel.Variable("principal.method", cel.StringType),
	cel.Variable("principal.scope", cel.ListType(cel.StringType)),
	cel.Variable("principal.roles", cel.ListType(cel.StringType)),
	cel.Variable("principal.client", cel.StringType),
	cel.Variable("principal.session", cel.StringType),
	cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
	cel.Variable("now", cel.TimestampType),
	cel.DefaultUTCTimeZone(true),
	cel.ParserRecursionLimit(maxDepth), cel.ExpressionNodeLimit(maxNodes), cel.RegexProgramSizeLimit(maxRegex),
	ext.Network(), // ip(), cidr()
))

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("rules: the environment of expressions: %v", err)) // it is a constant
	}
	return v
}

// condition is a compiled "when". nil holds always.
type condition struct{ program cel.Program }

func compile(text string) (*condition, error) {
	if len(text) > maxExpression {
		return nil, fmt.Errorf("is longer than %d bytes", maxExpression)
	}
	ast, issues := environment.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, fmt.Errorf("is no expression that can be meant: %s", firstLine(err.Error()))
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("must be true or false, not of type %s", ast.OutputType())
	}
	program, err := environment.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costLimit))
	if err != nil {
		return nil, fmt.Errorf("cannot be compiled: %s", firstLine(err.Error()))
	}
	return &condition{program}, nil
}

// firstLine drops the picture that CEL draws below an error.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return strings.TrimPrefix(line, "ERROR: ")
}

// check evaluates. Whatever is not true denies: an error, a panic of an extension, a cost beyond the limit.
func (c *condition) check(e *evaluation) (reason Reason, detail string) {
	if c == nil {
		return "", ""
	}
	defer func() {
		if p := recover(); p != nil { // fails closed
			reason, detail = ConditionFailed, "it panicked"
		}
	}()
	got, _, err := c.program.Eval(e)
	switch {
	case err != nil:
		return ConditionFailed, firstLine(err.Error())
	case got.Value() == true:
		return "", ""
	}
	return ConditionFalse, ""
}

// evaluation gives an expression what it names, made when it is asked for.
type evaluation struct {
	rule      *Rule
	request   *Request
	principal *Principal
	claims    map[string]any
	now       time.Time
}

// Parent implements cel.Activation.
func (e *evaluation) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (e *evaluation) ResolveName(name string) (any, bool) {
	r, p := e.request, e.principal
	switch name {
	case "request.method":
		return r.Method, true
	case "request.scheme":
		return r.Scheme, true
	case "request.host":
		return r.Host, true
	case "request.path":
		return r.Path.Text, true
	case "request.params":
		return e.params(), true
	case "request.query":
		return query(r.Query), true
	case "request.headers":
		return headers{r.Header}.mapper(), true
	case "request.address":
		if !r.Address.IsValid() {
			return "", true
		}
		return r.Address.String(), true
	case "principal.subject":
		return p.Subject, true
	case "principal.method":
		return p.Method, true
	case "principal.scope":
		return strings.Fields(p.Scope), true
	case "principal.roles":
		return p.Roles, true
	case "principal.client":
		return p.Client, true
	case "principal.session":
		return p.Session, true
	case "claims":
		if e.claims == nil {
			return map[string]any{}, true
		}
		return e.claims, true
	case "now":
		return e.now, true
	}
	return nil, false
}

// params are the named segments of the rule's pattern that matches.
func (e *evaluation) params() map[string]string {
	for _, pattern := range e.rule.patterns {
		if matches(pattern, e.request.Path.segments) {
			if got := params(pattern, e.request.Path.segments); got != nil {
				return got
			}
			break
		}
	}
	return map[string]string{}
}

// query decodes a query. One that cannot be decoded is an error, not empty: the service may well find members in it, and an
// expression may ask that one is not there.
func query(raw string) any {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return types.WrapErr(errors.New("the query cannot be decoded"))
	}
	return map[string][]string(values)
}
