package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The Django project of the throughput suite: Simple JWT with rotation and blacklist, as its documentation has them.
const (
	throughputSettings = `
INSTALLED_APPS += ['rest_framework_simplejwt', 'rest_framework_simplejwt.token_blacklist']
REST_FRAMEWORK = {'DEFAULT_AUTHENTICATION_CLASSES': ['rest_framework_simplejwt.authentication.JWTAuthentication']}
from datetime import timedelta
SIMPLE_JWT = {'ROTATE_REFRESH_TOKENS': True, 'BLACKLIST_AFTER_ROTATION': True, 'ACCESS_TOKEN_LIFETIME': timedelta(minutes=15)}
if (BASE_DIR / 'key.pem').exists():
    from cryptography.hazmat.primitives import serialization
    key = serialization.load_pem_private_key((BASE_DIR / 'key.pem').read_bytes(), None)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    SIMPLE_JWT |= {'ALGORITHM': 'RS256', 'SIGNING_KEY': (BASE_DIR / 'key.pem').read_text(), 'VERIFYING_KEY': public.decode()}
PASSWORD_HASHERS = ['django.contrib.auth.hashers.MD5PasswordHasher']  # logins are not what is measured
`
	throughputURLs = `
from django.urls import path
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView
urlpatterns = [path('api/token/', TokenObtainPairView.as_view()), path('api/token/refresh/', TokenRefreshView.as_view())]
`
)

// How the throughput of refresh is measured: so many clients, each with a session of its own, refresh one after the other.
const (
	throughputClients = 8
	throughputRound   = 3 * time.Second
	throughputRounds  = 3
)

// TestRefreshThroughput measures refreshes a second of sidekey, which syncs every write to the disk before it answers,
// and of Simple JWT on PostgreSQL, by turns on this machine, with HS256 (Simple JWT's default) and with RS256 (ours). It
// reports the ratios and asserts only that every answer was right.
func TestRefreshThroughput(t *testing.T) {
	needPython(t, "django", "rest_framework_simplejwt", "psycopg2", "gunicorn", "cryptography")
	for _, alg := range []string{"HS256", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			db := newPostgres(t)
			d := newDjango(t, throughputSettings+db.djangoDatabase(), throughputURLs)
			if alg == "RS256" {
				writeRSAKey(t, filepath.Join(d.Dir, "key.pem"))
			}
			d.shell("from django.contrib.auth.models import User\nUser.objects.create_user('alice', password='wonderland')")
			d.serve(2*runtime.NumCPU()+1, "/") // what gunicorn's documentation recommends
			c := dev(t, "", "[keys]\nalg = \""+alg+"\"")
			var theirs, ours []float64
			for range throughputRounds {
				theirs = append(theirs, refreshRate(t, d.URL))
				ours = append(ours, refreshRate(t, c.Issuer))
			}
			a, b := median(ours), median(theirs)
			t.Logf("%s: refreshes a second, %d clients, median of %d rounds of %s: sidekey %.0f, Simple JWT with PostgreSQL %.0f: %.1fx",
				alg, throughputClients, throughputRounds, throughputRound, a, b, a/b)
		})
	}
}

func writeRSAKey(t *testing.T, path string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// refreshRate gives refreshes a second of one round.
func refreshRate(t *testing.T, base string) float64 {
	t.Helper()
	tokens := make([]string, throughputClients)
	for i := range tokens {
		tokens[i] = postTokens(t, base+"/api/token/", `{"username":"alice","password":"wonderland"}`).Refresh
	}
	var wg sync.WaitGroup
	counts := make([]int, throughputClients)
	began := time.Now()
	end := began.Add(throughputRound)
	for i := range tokens {
		wg.Go(func() {
			for time.Now().Before(end) {
				next := postTokens(t, base+"/api/token/refresh/", fmt.Sprintf(`{"refresh":%q}`, tokens[i]))
				if next.Refresh == "" || next.Refresh == tokens[i] {
					return
				}
				tokens[i] = next.Refresh
				counts[i]++
			}
		})
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	n := 0
	for i, count := range counts {
		if count == 0 {
			t.Errorf("client %d had no refresh", i)
		}
		n += count
	}
	return float64(n) / took
}

type tokenPair struct{ Access, Refresh string }

var throughputClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: throughputClients}}

// postTokens gives what a request answered; a wrong answer fails the test and gives nothing.
func postTokens(t *testing.T, url, body string) (got tokenPair) {
	res, err := throughputClient.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return tokenPair{}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil {
		err = json.Unmarshal(text, &got)
	}
	if err != nil || res.StatusCode != http.StatusOK || got.Refresh == "" {
		t.Errorf("POST %s: got %d %s (%v)", url, res.StatusCode, text, err)
		return tokenPair{}
	}
	return got
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
