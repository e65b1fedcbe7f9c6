package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// django is a real Django project, made by Debian's Django in a folder of its own.
type django struct {
	t   *testing.T
	Dir string
	URL string // once it is served
}

// djangoSettings is what every project has; more is appended.
const djangoSettings = `
import pathlib
BASE_DIR = pathlib.Path(__file__).resolve().parent
SECRET_KEY = 'django-secret-of-the-end-to-end-suites-only-0123456789'
DEBUG = False
ALLOWED_HOSTS = ['*']
ROOT_URLCONF = 'urls'
INSTALLED_APPS = [
    'django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions', 'rest_framework',
]
MIDDLEWARE = ['django.contrib.sessions.middleware.SessionMiddleware', 'django.contrib.auth.middleware.AuthenticationMiddleware']
DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': BASE_DIR / 'db.sqlite3'}}
DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'
USE_TZ = True
`

// newDjango makes a project with more settings (Python, behind djangoSettings) and these URLs (Python, a whole urls.py), and
// migrates its database.
func newDjango(t *testing.T, settings, urls string) *django {
	t.Helper()
	d := &django{t: t, Dir: t.TempDir()}
	for name, text := range map[string]string{"settings.py": djangoSettings + settings, "urls.py": urls} {
		if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.run("-m", "django", "migrate", "--verbosity=0")
	return d
}

// command is Debian's Python in the project's folder, with its settings.
func (d *django) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.t.Context(), python, args...)
	cmd.Dir = d.Dir
	cmd.Env = append(os.Environ(), "DJANGO_SETTINGS_MODULE=settings", "PYTHONPATH="+d.Dir, "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

func (d *django) run(args ...string) string {
	d.t.Helper()
	cmd := d.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("python3 %q: %v\n%s%s", args, err, out, stderr.String())
	}
	return string(out)
}

// shell runs Python in the project, and gives what it prints.
func (d *django) shell(code string) string {
	d.t.Helper()
	return d.run("-c", "import django\ndjango.setup()\n"+code)
}

// serve answers on a free port, by gunicorn with so many workers, until the test ends. It asks for probe, any path, to see
// that it does.
func (d *django) serve(workers int, probe string) {
	d.t.Helper()
	address := "127.0.0.1:" + freePort(d.t)
	if err := os.WriteFile(filepath.Join(d.Dir, "wsgi.py"), []byte("from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	start(d.t, d.command("-m", "gunicorn", "--bind", address, "--workers", fmt.Sprint(workers), "--log-level", "warning", "--worker-tmp-dir", d.Dir, "wsgi"))
	d.URL = "http://" + address
	await(d.t, "gunicorn", func() error {
		res, err := http.Get(d.URL + probe)
		if err == nil {
			res.Body.Close()
		}
		return err
	})
}
