package main

import (
	"slices"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/bus"
)

// validateAuthenticators judges what of the [agent] table says who a request is from.
func (c *Config) validateAuthenticators() error {
	ag, known := &c.Agent, agent.Schemes()
	if len(ag.Authenticators) == 0 {
		return c.fault("agent.authenticators", "want at least one of %q", known)
	}
	for i, name := range ag.Authenticators {
		if !slices.Contains(known, name) {
			return c.fault("agent.authenticators", "there is no %q in this binary%s", name, didYouMean(name, known))
		}
		if slices.Contains(ag.Authenticators[:i], name) {
			return c.fault("agent.authenticators", "%q is listed twice", name)
		}
	}
	if ag.Challenges != agent.ChallengeAll && ag.Challenges != agent.ChallengeFirst {
		return c.fault("agent.challenges", "want all or first, got %q", ag.Challenges)
	}
	if ag.Rules != "" {
		if _, err := readRules(ag.Rules, ag.Authenticators); err != nil {
			return c.fault("agent.rules", "%v", err)
		}
	}
	for i, name := range ag.RulesSets {
		if err := bus.CheckRulesName(name); err != nil {
			return c.fault("agent.rules_sets", "%q: %v", name, err)
		}
		if slices.Contains(ag.RulesSets[:i], name) {
			return c.fault("agent.rules_sets", "%q is listed twice", name)
		}
	}
	if err := agent.CheckHeaders(ag.Headers); err != nil {
		return c.fault("agent.headers", "%v", err)
	}
	for name := range ag.Schemes {
		if !slices.Contains(ag.Authenticators, name) {
			return c.fault("agent.schemes", "the table %q is of no use: agent.authenticators does not have it", name)
		}
	}
	return c.validateWebhook()
}

func (c *Config) validateWebhook() error {
	w := c.Agent.Webhook.agent()
	wanted := slices.Contains(c.Agent.Authenticators, "webhook")
	switch {
	case !wanted && w.URL == "":
		return nil
	case !wanted:
		return c.fault("agent.webhook.url", `is of no use: agent.authenticators does not have "webhook"`)
	case w.URL == "":
		return c.fault("agent.webhook.url", "set it: the webhook is listed in agent.authenticators")
	}
	if err := w.Check(); err != nil {
		return c.fault("agent.webhook", "%v", err)
	}
	return nil
}
