package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/sidekey/sidekey/bus"
)

// Enrolment lets agents and issuers in, and knows who has joined. *bus.Enrolment is one.
type Enrolment interface {
	// Invite makes a join token for a name; bus.ErrExists: it has joined. life 0: an hour. audiences
	// are those that an agent may serve; none: the ring's default.
	Invite(ctx context.Context, role bus.Role, name string, life time.Duration, audiences ...string) (string, error)
	// Members lists who has joined, also the removed.
	Members(ctx context.Context, role bus.Role) ([]bus.Member, error)
	Remove(ctx context.Context, role bus.Role, name string) error // bus.ErrNotFound
}

// Invite makes a join token for an agent or an issuer: its one use lets in who has it.
// An agent is given HS256 secrets for these audiences alone (none: the ring's default), whatever it
// says that it serves.
func (i *Issuer) Invite(ctx context.Context, role bus.Role, name string, life time.Duration, audiences ...string) (string, error) {
	if i.Enrolment == nil {
		return "", fmt.Errorf("inviting %s %q: %w: this issuer lets nobody in", role, name, ErrUnavailable)
	}
	token, err := i.Enrolment.Invite(ctx, role, name, life, audiences...)
	switch {
	case errors.Is(err, bus.ErrExists):
		return "", fmt.Errorf("%s %q: %w; remove it first", role, name, ErrExists)
	case errors.Is(err, bus.ErrNoKeys):
		return "", &InputError{"name", "cannot be let in: " + err.Error()}
	}
	return token, err
}

// RemoveIssuer strikes an issuer off: its connections to the bus are closed. What it knows it keeps.
func (i *Issuer) RemoveIssuer(ctx context.Context, name string) error {
	if i.Enrolment == nil {
		return fmt.Errorf("removing issuer %q: %w", name, ErrNotFound)
	}
	switch err := i.Enrolment.Remove(ctx, bus.RoleIssuer, name); {
	case errors.Is(err, bus.ErrNotFound):
		return fmt.Errorf("removing issuer %q: %w", name, ErrNotFound)
	case errors.Is(err, bus.ErrOwnRemoval):
		return fmt.Errorf("removing issuer %q: %w", name, err)
	case err != nil:
		return unavailable("removing issuer", name, err)
	}
	i.event(ctx, "issuer removed", "name", name)
	return nil
}

// memberAnswer is an agent or an issuer in the admin API; times are NumericDate, absent where unknown.
type memberAnswer struct {
	Name    string `json:"name"`
	Run     string `json:"run,omitempty"`
	Version string `json:"version,omitempty"`
	Epoch   uint64 `json:"epoch,omitempty"`
	Seq     uint64 `json:"seq,omitempty"`
	Seen    int64  `json:"seen,omitempty"`
	Joined  int64  `json:"joined"`
	Removed int64  `json:"removed,omitempty"`
}

func (i *Issuer) adminInviteAgent(r *http.Request) (int, any, error) {
	return i.adminInvite(r, bus.RoleAgent)
}

func (i *Issuer) adminInviteIssuer(r *http.Request) (int, any, error) {
	return i.adminInvite(r, bus.RoleIssuer)
}

func (i *Issuer) adminInvite(r *http.Request, role bus.Role) (int, any, error) {
	var in struct {
		Name      string   `json:"name"`
		Expires   string   `json:"expires"`
		Audiences []string `json:"audiences"`
	}
	if err := readJSON(r, &in); err != nil {
		return 0, nil, err
	}
	if err := bus.CheckName(in.Name); err != nil {
		return 0, nil, &InputError{"name", "must be 1 to 128 bytes without blanks and control characters"}
	}
	var life time.Duration
	if in.Expires != "" {
		var err error
		if life, err = time.ParseDuration(in.Expires); err != nil || life < time.Second || life > bus.MaxTokenLife {
			return 0, nil, &InputError{"expires", fmt.Sprintf(`must be a duration from 1s to %s, such as "1h"`, bus.MaxTokenLife)}
		}
	}
	if len(in.Audiences) > 0 && role != bus.RoleAgent || len(in.Audiences) > 64 || slices.ContainsFunc(in.Audiences, func(aud string) bool {
		return aud == "" || len(aud) > maxAudienceBytes || !printable(aud)
	}) {
		return 0, nil, &InputError{"audiences", fmt.Sprintf("must be up to 64 audiences of up to %d printable bytes, and only for an agent", maxAudienceBytes)}
	}
	token, err := i.Invite(r.Context(), role, in.Name, life, in.Audiences...)
	return http.StatusCreated, map[string]string{"name": in.Name, "token": token}, err
}

func (i *Issuer) adminListAgents(r *http.Request) (int, any, error) {
	agents, err := i.Fleet.Agents(r.Context())
	if err != nil {
		return 0, nil, unavailable("listing", "agents", err)
	}
	all := make([]memberAnswer, 0, len(agents))
	for _, a := range agents {
		all = append(all, memberAnswer{a.Name, a.Run, a.Version, a.Epoch, a.Seq, numericDate(a.Seen), numericDate(a.Joined), 0})
	}
	gone, err := i.removed(r.Context(), bus.RoleAgent)
	return http.StatusOK, map[string]any{"agents": append(all, gone...)}, err
}

func (i *Issuer) removed(ctx context.Context, role bus.Role) ([]memberAnswer, error) {
	members, err := i.members(ctx, role)
	var gone []memberAnswer
	for _, m := range members {
		if m.Removed != 0 {
			gone = append(gone, m)
		}
	}
	return gone, err
}

func (i *Issuer) members(ctx context.Context, role bus.Role) ([]memberAnswer, error) {
	if i.Enrolment == nil {
		return nil, nil
	}
	members, err := i.Enrolment.Members(ctx, role)
	if err != nil {
		return nil, unavailable("listing", string(role)+"s", err)
	}
	all := make([]memberAnswer, 0, len(members))
	for _, m := range members {
		all = append(all, memberAnswer{Name: m.Name, Joined: m.Joined, Removed: m.RemovedAt})
	}
	return all, nil
}

func (i *Issuer) adminRemoveAgent(r *http.Request) (int, any, error) {
	return http.StatusNoContent, nil, i.RemoveAgent(r.Context(), r.PathValue("name"))
}

func (i *Issuer) adminListIssuers(r *http.Request) (int, any, error) {
	all, err := i.members(r.Context(), bus.RoleIssuer)
	return http.StatusOK, map[string]any{"issuers": append([]memberAnswer{}, all...)}, err
}

func (i *Issuer) adminRemoveIssuer(r *http.Request) (int, any, error) {
	return http.StatusNoContent, nil, i.RemoveIssuer(r.Context(), r.PathValue("name"))
}
