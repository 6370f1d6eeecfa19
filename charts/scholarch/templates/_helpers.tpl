{{- define "scholarch.name" -}}
{{- $name := ternary .Release.Name (printf "%s-scholarch" .Release.Name) (contains "scholarch" .Release.Name) -}}
{{- trunc 40 $name | trimSuffix "-" -}}
{{- end }}

{{- define "scholarch.labels" -}}
app.kubernetes.io/name: scholarch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: scholarch-platform
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What finds the pods of one part: (list . "mlflow"). */}}
{{- define "scholarch.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: scholarch-platform
{{- end }}

{{- define "scholarch.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end }}

{{- /* Of every pod: no rights on the node, and none at the API server unless it asks for them. */}}
{{- define "scholarch.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "scholarch.container" -}}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- end }}

{{- define "scholarch.endpoint" -}}
{{- if .Values.minio.enabled -}}
http://{{ include "scholarch.name" . }}-minio.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{- required "storage.endpoint is needed where minio.enabled is false" .Values.storage.endpoint -}}
{{- end -}}
{{- end }}

{{- define "scholarch.tracking" -}}
http://{{ include "scholarch.name" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- end }}

{{- /* Environment with which a part reaches S3: (list . "mlflow"). */}}
{{- define "scholarch.s3" -}}
{{- $root := index . 0 -}}
{{- $secret := ternary (printf "%s-storage-%s" (include "scholarch.name" $root) (index . 1)) $root.Values.storage.secret $root.Values.minio.enabled -}}
- {name: AWS_ENDPOINT_URL, value: {{ include "scholarch.endpoint" $root | quote }}}
- {name: AWS_REGION, value: {{ $root.Values.storage.region }}}
- {name: AWS_DEFAULT_REGION, value: {{ $root.Values.storage.region }}}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ required "storage.secret is needed where minio.enabled is false" $secret }}, key: {{ . }}}}
{{- end }}
{{- end }}

{{- define "scholarch.mlflowSecret" -}}
{{- .Values.mlflow.secret | default (printf "%s-mlflow" (include "scholarch.name" .)) -}}
{{- end }}

{{- define "scholarch.minioSecret" -}}
{{- .Values.minio.secret | default (printf "%s-minio" (include "scholarch.name" .)) -}}
{{- end }}
