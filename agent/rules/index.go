package rules

import (
	"math"
	"strings"
)

// index finds, for a host, a method and a path, the first rule in the order of the file: the lowest number. It is built
// once. Looking up walks the path's segments and skips what cannot hold a lower number than was found.
type index struct {
	hosts   map[string]*node // by host, in lower case
	domains map[string]*node // by domain: *.example.com stands under "example.com"
	any     *node            // rules that name no host
}

// node is a place in the tree of path patterns.
type node struct {
	lowest   int              // the lowest rule here or below
	rules    []int            // rules whose pattern ends here, ascending
	literal  map[string]*node // next segment, as it is written
	one      *node            // next segment, whatever it is: "*" or "{name}"
	rest     *node            // "**": any number of segments, then what this node has
	terminal bool             // this is a "**" node, and every rest of a path ends here too
}

const none = math.MaxInt

func newNode() *node { return &node{lowest: none} }

func newIndex() *index {
	return &index{hosts: make(map[string]*node), domains: make(map[string]*node), any: newNode()}
}

// add puts rule number n under one of its hosts ("": any) and one of its patterns.
func (x *index) add(n int, host string, pattern []segment) {
	root := x.any
	if host != "" {
		where := x.hosts
		if domain, ok := strings.CutPrefix(host, "*."); ok {
			where, host = x.domains, domain
		}
		if where[host] == nil {
			where[host] = newNode()
		}
		root = where[host]
	}
	at := root
	at.lowest = min(at.lowest, n)
	for _, s := range pattern {
		at = at.child(s)
		at.lowest = min(at.lowest, n)
	}
	if k := len(at.rules); k == 0 || at.rules[k-1] != n {
		at.rules = append(at.rules, n)
	}
}

func (nd *node) child(s segment) *node {
	var slot **node
	switch s.kind {
	case segmentOne:
		slot = &nd.one
	case segmentRest:
		slot = &nd.rest
	default:
		if nd.literal == nil {
			nd.literal = make(map[string]*node)
		}
		if nd.literal[s.text] == nil {
			nd.literal[s.text] = newNode()
		}
		return nd.literal[s.text]
	}
	if *slot == nil {
		*slot = newNode()
		(*slot).terminal = s.kind == segmentRest
	}
	return *slot
}

// find gives the lowest rule that matches the path under the host and that admits accepts, none if there is none.
func (x *index) find(host string, path []string, admits func(int) bool) int {
	s := search{best: none, admits: admits, left: maxSteps}
	s.walk(x.any, path)
	if nd := x.hosts[host]; nd != nil {
		s.walk(nd, path)
	}
	for rest := host; len(x.domains) > 0; {
		_, domain, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if nd := x.domains[domain]; nd != nil {
			s.walk(nd, path)
		}
		rest = domain
	}
	if s.left <= 0 {
		return none // fails closed: what was not looked at might have decided
	}
	return s.best
}

// maxSteps bounds one look-up. Patterns with several "**" could otherwise make a long path cost its square.
const maxSteps = 16384

// search is one look-up.
type search struct {
	best   int
	admits func(int) bool
	left   int
}

func (s *search) walk(nd *node, path []string) {
	if s.left--; s.left < 0 || nd.lowest >= s.best {
		return
	}
	if len(path) == 0 || nd.terminal {
		s.take(nd.rules)
	}
	if nd.rest != nil { // "**" also stands for no segment at all
		for skip := 0; skip <= len(path) && s.left > 0; skip++ {
			s.walk(nd.rest, path[skip:])
			if !nd.rest.deeper() {
				break // it takes any rest: one look is enough
			}
		}
	}
	if len(path) == 0 {
		return
	}
	if next := nd.literal[path[0]]; next != nil {
		s.walk(next, path[1:])
	}
	if nd.one != nil {
		s.walk(nd.one, path[1:])
	}
}

// deeper tells whether patterns go on behind the node.
func (nd *node) deeper() bool { return nd.literal != nil || nd.one != nil || nd.rest != nil }

// take looks at the rules that end at a node; they ascend.
func (s *search) take(rules []int) {
	for _, n := range rules {
		if n >= s.best {
			return
		}
		if s.admits(n) {
			s.best = n
			return
		}
	}
}
