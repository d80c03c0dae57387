package config

import (
	"fmt"
	"slices"
	"strings"

	"wayleave/identity"
)

// This file checks who vouches for workers, and that what is said of one never makes it another.

func (k *checker) issuers() {
	for n, name := range keys(k.Issuers) {
		i, path := k.Issuers[name], join("issuers", name)
		k.name(path, name)
		if i.Issuer == "" {
			k.fault(path+".issuer", "is missing", "write the claim iss of its tokens, such as https://gitlab.example.com")
		}
		if i.Audience == "" {
			k.fault(path+".audience", "is missing: a token made for any other service would do", "write a name that only this gate has, such as its URL")
		}
		if k.doc.isBroken(path + ".method") {
			continue
		}
		address := func(key, value string) {
			if fault := identity.AddressFault(value); fault != "" {
				k.fault(path+"."+key, quote(value)+" "+fault, "write the full address")
			}
		}
		unused := map[string]string{"api": i.API, "token_file": i.TokenFile}
		switch {
		case i.Method == ByTokenReview:
			unused = map[string]string{"jwks_url": i.JWKSURL}
			address("api", i.API)
		case i.JWKSURL != "":
			address("jwks_url", i.JWKSURL)
		case strings.HasPrefix(i.Issuer, "spiffe://"):
			k.fault(path+".jwks_url", "is missing", "write where the trust domain's bundle is")
		case i.Issuer != "":
			address("issuer", i.Issuer)
		}
		for _, key := range keys(unused) {
			if unused[key] != "" {
				k.fault(path+"."+key, "is not used by method "+i.Method, "remove it, or set another method")
			}
		}
		for _, other := range keys(k.Issuers)[:n] {
			if o := k.Issuers[other]; o.Issuer == i.Issuer && o.Audience == i.Audience && o.JWKSURL == i.JWKSURL && o.API == i.API {
				k.fault(path, "is the same as issuers."+other, "remove one")
			}
		}
	}
}

// proofs checks what each worker proves itself by.
func (k *checker) proofs() {
	for _, name := range keys(k.Workers) {
		w, path := k.Workers[name], join("workers", name)
		if w.SPIFFEID != "" {
			k.spiffe(path+".spiffe_id", w)
		}
		if !w.From.Given() {
			if k.doc.given(path+".from") && !k.doc.isBrokenWithin(path+".from") {
				k.fault(path+".from", "says nothing", "write issuer, and subject or claims")
			}
			continue
		}
		if w.TokenSHA256 != "" || w.TokenFile != "" {
			k.fault(path+".from", "written beside a token of the gate's", "keep one of the two")
		}
		k.from(path+".from", w.From)
	}
	if len(k.doc.faults) == 0 {
		k.distinct()
	}
}

// spiffe checks a worker with a certificate. One bundle vouches for one trust domain: with those of two in one file, either
// authority could sign for workers of the other.
func (k *checker) spiffe(path string, w Worker) {
	if w.TokenSHA256 != "" || w.TokenFile != "" || w.From.Given() {
		k.fault(path, "written beside another way to prove who it is", "keep one of them")
	}
	if what, fix := identity.SPIFFEPatternFault(w.SPIFFEID); what != "" {
		k.fault(path, what, fix)
		return
	}
	if k.Listen.ClientCAFile == "" {
		k.fault(path, "has no effect without listen.client_ca_file", "name the trust bundle of "+identity.TrustDomain(w.SPIFFEID)+" there")
	}
	for _, other := range keys(k.Workers) {
		o := k.Workers[other].SPIFFEID
		if what, _ := identity.SPIFFEPatternFault(o); what != "" {
			continue
		}
		if first := identity.TrustDomain(o); first != identity.TrustDomain(w.SPIFFEID) {
			k.fault(path, "is of another trust domain than worker "+quote(other)+" ("+first+")", "use one trust domain with one gate, whose bundle vouches for it alone")
		}
		return // the first is what the others are held to
	}
}

func (k *checker) from(path string, f From) {
	k.reference(path+".issuer", "issuer", f.Issuer, "issuers", keys(k.Issuers))
	if f.Subject == "" && len(f.Claims) == 0 {
		k.fault(path, "lets in whoever the issuer knows", "write subject, or claims, that only this worker has")
	}
	if f.Subject != "" {
		k.pattern(path+".subject", f.Subject)
	}
	for _, claim := range keys(f.Claims) {
		at := join(path+".claims", claim)
		if claim == identity.Subject && f.Subject != "" {
			k.fault(at, "is the subject", "keep one of the two")
		}
		k.pattern(at, f.Claims[claim])
	}
}

func (k *checker) pattern(path, pattern string) {
	what, fix := identity.PatternFault(pattern)
	if what != "" {
		k.fault(path, what, fix)
		return
	}
	// acme* is also acme-evil, which anybody may register.
	beginning, open := strings.CutSuffix(pattern, "*")
	if last := beginning[len(beginning)-1]; open && !strings.ContainsRune("/:-._", rune(last)) {
		k.warn(path, fmt.Sprintf("%s also fits values that go on in the middle of a word", quote(pattern)), "end it before the * with a separator, such as / or :, or write the whole value")
	}
}

// distinct refuses two workers that one caller may be.
func (k *checker) distinct() {
	names := slices.DeleteFunc(keys(k.Workers), func(name string) bool { return k.Workers[name].Match().IsZero() })
	for n, name := range names {
		for _, other := range names[:n] {
			if k.Workers[name].Match().Ambiguous(k.Workers[other].Match()) {
				fix := "write a claim in both with different values, or repeat the conditions of one in the other"
				if k.Workers[name].SPIFFEID != "" {
					fix = "give each a spiffe_id of its own"
				}
				k.fault(join("workers", name), "is worker "+quote(other)+" too: one caller may fit both, and neither is narrower", fix)
			}
		}
	}
}
