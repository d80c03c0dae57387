package vault

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// LogIn is what the server says of our log-in.
type LogIn struct {
	Path      string        // where the token was made, such as auth/approle/login
	Policies  []string      // their names
	TTL       time.Duration // how long the token still works; 0: for ever
	Period    time.Duration // a renewal makes it last this long; 0: each renewal is shorter, up to a maximum
	Renewable bool

	appRole string // name of the AppRole role, of which the configuration knows only the id
}

// LogIn asks the server about the current log-in.
func (c *Client) LogIn(ctx context.Context) (LogIn, error) {
	var self struct {
		Data struct {
			Path      string   `json:"path"`
			Policies  []string `json:"policies"`
			TTL       int64    `json:"ttl"` // seconds
			Period    any      `json:"period"`
			Renewable bool     `json:"renewable"`
			Meta      struct {
				RoleName string `json:"role_name"`
			} `json:"meta"`
		} `json:"data"`
	}
	if err := c.read(ctx, "auth/token/lookup-self", &self); err != nil {
		return LogIn{}, fmt.Errorf("looking up our own vault token: %w", err)
	}
	d := self.Data
	l := LogIn{Path: d.Path, Policies: d.Policies, TTL: time.Duration(d.TTL) * time.Second, Renewable: d.Renewable, appRole: d.Meta.RoleName}
	if seconds, ok := d.Period.(float64); ok {
		l.Period = time.Duration(seconds) * time.Second
	}
	return l, nil
}

// SecretID is how long a secret id still works.
type SecretID struct {
	Expires time.Time // zero: it never does. The server caps the life that was asked for without saying so
	Uses    int       // log-ins left; 0: any number
}

// SecretID asks the server how long the secret id of our AppRole log-in still works. It is [ErrDenied] when the policy
// does not let us ask, which the one of deploy/vault does for the role that Setup makes.
func (c *Client) SecretID(ctx context.Context) (SecretID, error) {
	if c.cfg.Auth.Method != "approle" {
		return SecretID{}, errors.New("the log-in is not by AppRole, so it has no secret id")
	}
	l, err := c.LogIn(ctx)
	if err != nil {
		return SecretID{}, err
	}
	id, err := credential("secret id", c.cfg.Auth.SecretID, c.cfg.Auth.SecretIDFile)
	if err != nil {
		return SecretID{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	var found struct {
		Expires time.Time `json:"expiration_time"`
		Uses    int       `json:"secret_id_num_uses"`
	}
	path := "auth/" + c.cfg.Auth.Mount + "/role/" + l.appRole + "/secret-id/lookup"
	if err := c.write(ctx, callTimeout, path, map[string]string{"secret_id": id.Reveal()}, &found); err != nil {
		return SecretID{}, fmt.Errorf("looking up our secret id: %w", err)
	}
	return SecretID(found), nil
}

// soon is how long before the end of a secret id we warn: time for somebody to make another.
const soon = 7 * 24 * time.Hour

// Warning says what will go wrong with the secret id, empty when nothing will soon.
func (s SecretID) Warning(now time.Time) string {
	switch left := s.Expires.Sub(now).Round(time.Second); {
	case s.Uses > 0:
		return "it ends after " + strconv.Itoa(s.Uses) + " more log-ins"
	case s.Expires.IsZero(), left > soon:
		return ""
	case left <= 0:
		return "it has expired"
	default:
		return "it ends in " + left.String()
	}
}

// warnOfSecretID logs it while there is time, once a day: a token that is renewed for ever outlives its secret id, and
// only a restart finds out. That we may not ask is no news.
func (c *Client) warnOfSecretID(ctx context.Context) {
	if c.cfg.Auth.Method != "approle" || time.Since(c.lastWarning) < 24*time.Hour {
		return
	}
	c.lastWarning = time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id, err := c.SecretID(ctx)
	if err != nil {
		return
	}
	if warning := id.Warning(time.Now()); warning != "" {
		c.log.Warn("the secret id of the vault log-in must be replaced", "why", warning)
	}
}
