{{- define "sidekey.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "sidekey.labels" -}}
app.kubernetes.io/name: sidekey
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "sidekey.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "sidekey.user" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- end }}

{{- define "sidekey.podSecurity" -}}
{{ include "sidekey.user" . }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sidekey.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sidekey.agentProbes" -}}
startupProbe:
  httpGet: {path: /healthz, port: ops}
  failureThreshold: 60
  periodSeconds: 2
livenessProbe:
  httpGet: {path: /healthz, port: ops}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
{{- end }}

{{/*
sidekey.agentSidecar is an agent as a native sidecar: an item of a pod's initContainers, so that the pod's own containers start once
the agent is ready, and end before it. The pod has these volumes: sidekey-state (one that stays, such as a StatefulSet's claim: the
agent joins once, and its token is good for one use), sidekey-runtime (emptyDir with medium Memory, which nobody else mounts) and
sidekey-join (a Secret with the token under sidekey.join). No two processes share a name, so a Deployment of many pods takes the
DaemonSet's agent instead.

A new claim belongs to root, and the agent is not root, so the pod's securityContext has

  fsGroup: 65532                      # or the pod's own: every container has it
  fsGroupChangePolicy: OnRootMismatch # done at each start, the change of group opens the state's files, and the agent refuses those

Everybody may write an emptyDir, and an agent refuses such a folder for its state and its lease: it makes folders of its own in both.
*/}}
{{- define "sidekey.agentSidecar" -}}
- name: sidekey-agent
  image: {{ include "sidekey.image" .root }}
  restartPolicy: Always
  args: [agent, --agent-listen, "127.0.0.1:7461", --agent-ops-listen, "0.0.0.0:7469", --join, /run/sidekey-join/sidekey.join]
  env:
    - {name: SIDEKEY_DATA_DIR, value: /var/lib/sidekey-agent/data}
    - {name: SIDEKEY_AGENT_DATA_DIR, value: /var/lib/sidekey-agent/data}
    - {name: SIDEKEY_AGENT_RUNTIME_DIR, value: /run/sidekey/agent}
  ports: [{name: ops, containerPort: 7469}]
  startupProbe:
    httpGet: {path: /readyz, port: ops}
    failureThreshold: 120
    periodSeconds: 1
  livenessProbe:
    httpGet: {path: /healthz, port: ops}
    periodSeconds: 10
    failureThreshold: 6
  securityContext:
    {{- include "sidekey.user" . | nindent 4 }}
    {{- include "sidekey.containerSecurity" . | nindent 4 }}
  resources: {{- toYaml .root.Values.agent.resources | nindent 4 }}
  volumeMounts:
    - {name: sidekey-state, mountPath: /var/lib/sidekey-agent}
    - {name: sidekey-runtime, mountPath: /run/sidekey}
    - {name: sidekey-join, mountPath: /run/sidekey-join, readOnly: true}
{{- end }}
