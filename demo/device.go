package demo

import (
	"crypto/rand"
	"net/http"
	"strings"
	"time"
)

const (
	deviceTTL  = 10 * time.Minute
	devicePace = 5 * time.Second // added by each slow_down (RFC 8628 §3.5)
)

// device is a login that waits for an operator.
type device struct {
	client, userCode string
	scopes           []string
	expires          time.Time
	interval         time.Duration
	polled           time.Time
	approved, denied bool
}

// deviceCode is the device authorization endpoint (RFC 8628 §3.1).
func (p *Provider) deviceCode(w http.ResponseWriter, r *http.Request) {
	params, err := readParams(r)
	if err != nil {
		oauthError(w, "invalid_request")
		return
	}
	code := p.newSecret(devicePrefix)
	p.mu.Lock()
	c, fault := p.authenticate(params, base(r))
	scopes := p.allowedLocked(strings.Fields(params["scope"]))
	if fault == "" && len(scopes) == 0 {
		fault = "invalid_scope"
	}
	d := &device{client: c.ID, userCode: userCode(), scopes: scopes, expires: p.opts.Now().Add(deviceTTL), interval: p.opts.DeviceInterval}
	if fault == "" {
		p.devices[code] = d
	}
	p.mu.Unlock()
	if fault != "" {
		oauthError(w, fault)
		return
	}
	page := base(r) + "/activate"
	writeJSON(w, http.StatusOK, map[string]any{
		"device_code": code, "user_code": d.userCode, "verification_uri": page, "verification_uri_complete": page + "?user_code=" + d.userCode,
		"expires_in": int(deviceTTL / time.Second), "interval": max(int(d.interval/time.Second), 1),
	})
}

// userCode is short enough to be typed (RFC 8628 §6.1).
func userCode() string {
	text := rand.Text()
	return text[:4] + "-" + text[4:8]
}

// activate is the page where an operator types the code. It approves at once, or refuses when consents are denied.
func (p *Provider) activate(w http.ResponseWriter, r *http.Request) {
	typed := strings.ToUpper(r.URL.Query().Get("user_code"))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.devices {
		if d.userCode == typed && p.opts.Now().Before(d.expires) {
			d.approved, d.denied = !p.knobs.denied, p.knobs.denied
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	http.Error(w, "no device waits for this code", http.StatusNotFound)
}

// claim is a device's poll (RFC 8628 §3.4).
func (p *Provider) claim(c Client, code string, now time.Time, ttl time.Duration) (t issued, fault string) {
	d, ok := p.devices[code]
	if !ok || d.client != c.ID {
		return t, "invalid_grant"
	}
	last := d.polled
	d.polled = now
	switch {
	case !now.Before(d.expires):
		delete(p.devices, code)
		return t, "expired_token"
	case d.denied:
		delete(p.devices, code)
		return t, "access_denied"
	case d.approved:
		delete(p.devices, code)
		return p.ledger.open(c.ID, d.scopes, now, ttl), ""
	case !last.IsZero() && now.Sub(last) < d.interval*9/10: // clocks of two machines
		d.interval += devicePace
		return t, "slow_down"
	}
	return t, "authorization_pending"
}
